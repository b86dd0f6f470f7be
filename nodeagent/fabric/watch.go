package fabric

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watch lets goroutines wait for events of a socket, and none but those asked for. A
// descriptor in the runtime's poller wakes it whenever something comes and whenever
// there is room, whether somebody waits or not (runtime/netpoll_epoll.go): once for
// each frame that a guest takes. So the socket is not in there, but in an epoll
// instance of its own, which is in there in its place (epoll(7), "can be nested").
// Nothing is ever taken out of that instance: whether it is readable is found by asking
// the socket.
//
// Concurrency: one goroutine awaits; the rest from any goroutine.
type watch struct {
	file   *os.File // immutable; the epoll instance
	raw    syscall.RawConn
	socket syscall.RawConn
}

// newWatch waits for events (EPOLLIN, EPOLLOUT) of a socket. Close it.
func newWatch(socket syscall.RawConn, events uint32) (*watch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // what the runtime's poller takes
		return nil, errors.Join(fmt.Errorf("set up epoll instance: %w", err), unix.Close(fd))
	}
	w := &watch{file: os.NewFile(uintptr(fd), "epoll"), socket: socket}
	err = w.file.SetDeadline(time.Time{}) // it is in the poller
	if err == nil {
		w.raw, err = w.file.SyscallConn()
	}
	if err == nil {
		err = w.control(unix.EPOLL_CTL_ADD, events)
	}
	if err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

// want changes what is waited for.
func (w *watch) want(events uint32) error { return w.control(unix.EPOLL_CTL_MOD, events) }

func (w *watch) control(op int, events uint32) (err error) {
	cerr := w.raw.Control(func(epoll uintptr) {
		serr := w.socket.Control(func(fd uintptr) {
			err = unix.EpollCtl(int(epoll), op, int(fd), &unix.EpollEvent{Events: events, Fd: int32(fd)})
		})
		err = errors.Join(err, serr)
	})
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("watch socket: %w", err)
	}
	return nil
}

// await tries, and again after each event, until try says that it is done, the file's
// read deadline passes (os.ErrDeadlineExceeded), or the watch is closed.
func (w *watch) await(try func() (done bool)) error {
	return w.raw.Read(func(uintptr) bool { return try() })
}

func (w *watch) close() error { return w.file.Close() }
