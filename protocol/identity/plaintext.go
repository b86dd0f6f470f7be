package identity

import (
	"fmt"
	"net"
	"strings"
)

// PlaintextAllowed returns nil when addr may be served or dialled without
// encryption: a unix socket (unix:PATH, unix:///PATH or an absolute path) or a
// loopback address. Whoever reaches such an address is on this machine and is
// trusted with every role, which is why plain text must be asked for.
func PlaintextAllowed(addr string) error {
	if strings.HasPrefix(addr, "unix:") || strings.HasPrefix(addr, "/") {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("plain text on %q: %w", addr, err)
	}
	if host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("plain text on %s: only loopback addresses and unix sockets may go without certificates", addr)
}
