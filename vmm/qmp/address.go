package qmp

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxAddress is the longest path that fits sockaddr_un with its final NUL
// (unix(7): sun_path has 108 bytes).
const maxAddress = 107

// address returns a name of path that is short enough for a socket address:
// path itself, or one through a descriptor of its directory. release gives the
// descriptor back, once the address has been used.
func address(path string) (addr string, release func(), err error) {
	if len(path) <= maxAddress {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	addr = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if len(addr) > maxAddress {
		dir.Close()
		return "", nil, fmt.Errorf("socket name %s: too long", filepath.Base(path))
	}
	return addr, func() { dir.Close() }, nil
}

// Connect connects to the socket at path, which may be too long for a socket address.
func Connect(ctx context.Context, path string) (*net.UnixConn, error) {
	addr, release, err := address(path)
	if err != nil {
		return nil, err
	}
	defer release()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", addr)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Listen makes a socket at path for a monitor, or a port of the guest, to listen on,
// readable by the owner alone: who may connect to it controls the guest. The path stays when
// the listener closes, because it belongs to the process that serves it.
func Listen(path string) (*net.UnixListener, error) {
	addr, release, err := address(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		os.Remove(path)
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}
