// Package address knows the two forms of an address at which a part of Fermata is
// reached, host:port and unix:PATH, and dials both alike.
//
// gRPC and its resolvers read an address as a URL, in which the path of a socket
// cannot hold every character that a file name can. Here an address is what it says.
package address

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
)

// maxPath is the longest path of a unix socket: sun_path of unix(7) has 108 bytes, of
// which the last is zero.
const maxPath = 107

// Target is the gRPC target of a connection that DialOption dials.
const Target = "passthrough:///fermata"

// DialOption has a connection to Target dial addr.
func DialOption(addr string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		if path, ok := Unix(addr); ok {
			return d.DialContext(ctx, "unix", path)
		}
		return d.DialContext(ctx, "tcp", addr)
	})
}

// Unix returns the path of a unix socket: unix:PATH, unix:///PATH or an absolute path.
func Unix(addr string) (path string, isUnix bool) {
	if strings.HasPrefix(addr, "/") {
		return addr, true
	}
	path, isUnix = strings.CutPrefix(addr, "unix:")
	if rest, triple := strings.CutPrefix(path, "///"); isUnix && triple {
		path = "/" + rest
	}
	return path, isUnix
}

// Check refuses what is not the form of an address to listen on.
func Check(addr string) error {
	if path, ok := Unix(addr); ok {
		if path == "" || len(path) > maxPath {
			return fmt.Errorf("%q: the path of a socket has 1 to %d bytes, this one has %d", addr, maxPath, len(path))
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return fmt.Errorf("%q is neither host:port nor unix:PATH", addr)
	}
	return nil
}

// CheckDialled refuses what nobody can dial, although one can listen on it: 0.0.0.0 and
// [::] stand for every address of a machine, and lead whoever dials them to himself.
func CheckDialled(addr string) error {
	if err := Check(addr); err != nil {
		return err
	}
	if Wildcard(addr) {
		return fmt.Errorf("%q stands for every address of a machine; others need one of them, such as 192.0.2.1:%s", addr, portOf(addr))
	}
	return nil
}

// Wildcard reports whether addr is host:port for every address of a machine.
func Wildcard(addr string) bool {
	if _, ok := Unix(addr); ok {
		return false
	}
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr) // checked before
	return port
}
