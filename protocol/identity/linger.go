package identity

import (
	"io"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// lingerTime and lingerBytes bound how long a refused client is listened to.
// A client sends its first request at once, a few hundred bytes.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// lingerCredentials delivers the reason of a refused handshake. In TLS 1.3 the
// client considers itself connected before the server has seen its
// certificate, and writes. Closing a TCP socket with unread data resets the
// connection, and the client would as often read "broken pipe" as the alert.
// See TestHandshake_WrongAuthorityRefused.
type lingerCredentials struct {
	credentials.TransportCredentials
}

func (c lingerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	l := &lingerConn{Conn: raw}
	conn, info, err := c.TransportCredentials.ServerHandshake(l)
	if err == nil {
		l.accepted.Store(true)
	}
	return conn, info, err
}

func (c lingerCredentials) Clone() credentials.TransportCredentials {
	return lingerCredentials{c.TransportCredentials.Clone()}
}

// lingerConn reads what the client still sends before it closes, unless the
// handshake was accepted.
type lingerConn struct {
	net.Conn
	accepted atomic.Bool
}

func (l *lingerConn) Close() error {
	if half, ok := l.Conn.(interface{ CloseWrite() error }); ok && !l.accepted.Load() {
		// The outcome does not matter: the connection is given up either way.
		if half.CloseWrite() == nil && l.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, l.Conn, lingerBytes)
		}
	}
	return l.Conn.Close()
}
