package identity

import (
	"crypto/tls"
	"net"
	"testing"
)

// handshake runs both ends over a socket pair and returns the server's verdict.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	clientDone := make(chan struct{})
	go func() {
		defer close(clientDone)
		conn, err := tls.Dial("tcp", lis.Addr().String(), client)
		if err != nil {
			return
		}
		var b [1]byte
		_, _ = conn.Read(b[:]) // until the server hangs up
		_ = conn.Close()
	}()
	raw, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = raw.Close()
		<-clientDone
	}()
	return tls.Server(raw, server).HandshakeContext(t.Context())
}
