package coordinator

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"fermata/protocol/address"
)

// socketMode keeps a unix socket for its owner: over plain text whoever opens
// it has every role.
const socketMode = 0o600

// listenAll opens every address, or none.
func listenAll(addresses []string) (_ []net.Listener, err error) {
	var all []net.Listener
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(all))
		}
	}()
	for _, a := range addresses {
		l, err := listen(a)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// listen opens host:port or unix:PATH.
func listen(addr string) (net.Listener, error) {
	path, isUnix := address.Unix(addr)
	if !isUnix {
		return net.Listen("tcp", addr)
	}
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeStaleSocket removes the socket of a process that was killed. A socket
// that somebody serves, and anything that is no socket, stays.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = conn.Close() // it only had to be there
		return fmt.Errorf("%s is served by another process", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}
