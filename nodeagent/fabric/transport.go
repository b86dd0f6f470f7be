package fabric

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// A peer that vanished without a reset is noticed within about ten seconds,
// whether the link is idle (keep-alive) or has data on the way (user timeout).
// The link then waits for a new connection instead of for TCP's own minutes.
const (
	keepAliveIdle     = 4 * time.Second
	keepAliveInterval = 2 * time.Second
	keepAliveCount    = 3
	userTimeout       = 10 * time.Second
)

// dial connects to a peer and proves who it is.
func (f *Fabric) dial(ctx context.Context, node, address string) (net.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reach node %s: %w", node, err)
	}
	conn, err := f.dialed(ctx, raw, node)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach node %s: %w", node, err), raw.Close())
	}
	return conn, nil
}

func (f *Fabric) dialed(ctx context.Context, raw net.Conn, node string) (net.Conn, error) {
	if err := tune(raw); err != nil {
		return nil, err
	}
	if f.cfg.Plaintext {
		return raw, nil
	}
	conn := tls.Client(raw, f.cfg.ClientTLS(node))
	if err := handshake(ctx, conn); err != nil {
		return nil, err
	}
	return conn, nil
}

// accepted proves who has dialled. The name is empty on plaintext links.
func (f *Fabric) accepted(ctx context.Context, raw net.Conn) (net.Conn, string, error) {
	if err := tune(raw); err != nil {
		return nil, "", err
	}
	if f.cfg.Plaintext {
		return raw, "", nil
	}
	conn := tls.Server(raw, f.cfg.ServerTLS)
	if err := handshake(ctx, conn); err != nil {
		return nil, "", err
	}
	name, err := f.cfg.PeerName(conn.ConnectionState())
	if err != nil {
		return nil, "", fmt.Errorf("name of peer: %w", err)
	}
	if name == "" {
		return nil, "", errors.New("name of peer: certificate has none")
	}
	return conn, name, nil
}

func handshake(ctx context.Context, conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	return nil
}

// tune sets the options that make TCP notice a vanished peer. Go sets
// TCP_NODELAY by itself; the link gathers its writes.
func tune(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil // a listener of another kind has its own ways
	}
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}); err != nil {
		return fmt.Errorf("set keep-alive: %w", err)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("set user timeout: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
	if err := errors.Join(err, serr); err != nil {
		return fmt.Errorf("set user timeout: %w", err)
	}
	return nil
}

// hangUp closes the connection under conn, without TLS's farewell, which can
// wait for a peer that does not read.
func hangUp(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // nothing is lost by an error: unacknowledged records are sent again
}
