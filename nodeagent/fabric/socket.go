package fabric

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// toGuestBuffer is asked for the direction fabric -> guest; the kernel
	// doubles it and charges each frame with its whole buffer (about 2.3 KiB for
	// 1,514 bytes). It is small because the guest must take all of it before it
	// is stopped; more waits in the port's own queue, where it costs nothing.
	toGuestBuffer = 256 << 10
	// fromGuestBuffer is asked for the direction guest -> fabric. It is large
	// because a QEMU that cannot send keeps a frame inside, and a stop purges it.
	fromGuestBuffer = 4 << 20
	// minBuffer is what the kernel must have granted: a few frames of MaxFrame.
	minBuffer = 4 * MaxFrame
)

// NewPair makes the two ends of a guest NIC's wire. The fabric end goes to
// Attach alone. The guest end goes to QEMU (-netdev dgram,local.type=fd) and to
// Attach. Both are close-on-exec.
//
// Both are blocking descriptors for Go: they stay out of the runtime's poller, see
// watch.
func NewPair() (fabricEnd, guestEnd *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	err = errors.Join(
		setBuffers(fds[0], toGuestBuffer),
		setBuffers(fds[1], fromGuestBuffer),
	)
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "fabric-end"), os.NewFile(uintptr(fds[1]), "guest-end"), nil
}

// setBuffers sets how much fd may have sent that its peer has not read. The
// sender's limit is the only one that counts on a connected pair (unix(7)).
// The receive size is set alike for tools that show it.
func setBuffers(fd, size int) error {
	for _, o := range []struct{ force, plain int }{
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
	} {
		// Beyond net.core.wmem_max it takes CAP_NET_ADMIN; the plain option grants
		// as much as that limit allows.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, size) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, size); err != nil {
			return fmt.Errorf("set socket buffer: %w", err)
		}
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("read socket buffer: %w", err)
	}
	if got < minBuffer {
		return fmt.Errorf("socket buffer of %d bytes, need %d: raise net.core.wmem_max", got, minBuffer)
	}
	return nil
}

// wire is the socket pair of one NIC, as the fabric holds it: its own end, and
// a second descriptor of the guest's end.
//
// Concurrency: one sender and one receiver; the rest from any goroutine.
type wire struct {
	fabricEnd *os.File // immutable
	guestEnd  *os.File // immutable
	fabric    syscall.RawConn
	guest     syscall.RawConn
	arrivals  *watch // immutable; frames of the guest
	room      *watch // immutable; for frames to the guest, while somebody waits for it
	// egressLow is the most the fabric may have left unread for a QEMU that found
	// the socket full to be told that it is not (unix_writable in
	// linux/net/unix/af_unix.c). Immutable.
	egressLow int

	out batch // owned by who sends
}

func newWire(fabricEnd, guestEnd *os.File) (*wire, error) {
	fabric, err := fabricEnd.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use fabric end: %w", err)
	}
	guest, err := guestEnd.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("use guest end: %w", err)
	}
	var size int
	cerr := guest.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("read socket buffer of guest end: %w", err)
	}
	w := &wire{fabricEnd: fabricEnd, guestEnd: guestEnd, fabric: fabric, guest: guest, egressLow: size / 4, out: newBatch()}
	if w.arrivals, err = newWatch(fabric, unix.EPOLLIN); err != nil {
		return nil, err
	}
	if w.room, err = newWatch(fabric, 0); err != nil {
		return nil, errors.Join(err, w.arrivals.close())
	}
	return w, nil
}

// trySend sends one frame, or returns EAGAIN when the guest's socket is full.
//
// Preconditions: data is not empty. A datagram of no bytes ends QEMU's netdev.
func (w *wire) trySend(data []byte) error {
	var err error
	if cerr := w.fabric.Control(func(fd uintptr) { err = sendDatagram(fd, data) }); cerr != nil {
		return cerr
	}
	return err
}

// trySendAll sends frames, in order, until the guest's socket is full, and returns how
// many it has sent. What the kernel does not take for another reason ends it likewise:
// the next send of that frame tells the reason.
//
// Preconditions: len(frames) <= batchSize; none is empty.
func (w *wire) trySendAll(frames []frame) (n int) {
	if len(frames) == 1 {
		if w.trySend(frames[0].data) != nil {
			return 0
		}
		return 1
	}
	for i, fr := range frames {
		w.out.set(i, fr.data)
	}
	defer w.out.clear(len(frames))
	var err error
	cerr := w.fabric.Control(func(fd uintptr) { n, err = w.out.call(unix.SYS_SENDMMSG, fd, len(frames)) })
	if cerr != nil || err != nil {
		return 0
	}
	return n
}

// send waits until the frame is sent, the write deadline passes
// (os.ErrDeadlineExceeded, nothing sent) or the wire is closed.
func (w *wire) send(data []byte) error {
	if err := w.room.want(unix.EPOLLOUT); err != nil {
		return err
	}
	var err error
	werr := w.room.await(func() bool {
		err = w.trySend(data)
		return !isFull(err)
	})
	if werr != nil {
		err = werr
	}
	_ = w.room.want(0) // at worst somebody is woken for nothing
	return err
}

func sendDatagram(fd uintptr, data []byte) error {
	for {
		err := unix.Sendto(int(fd), data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

// isFull tells errors of a send that pass by themselves.
func isFull(err error) bool { return err == unix.EAGAIN || err == unix.ENOBUFS }

// receive waits for datagrams from the guest and takes what is there, as many as in
// has room for; one that does not fit is cut short. working is told true from before a
// datagram leaves the socket until a later call finds the socket empty, so that
// "nothing unread, then not working" means that all was dealt with.
func (w *wire) receive(in *batch, working func(bool)) (n int, err error) {
	rerr := w.arrivals.await(func() bool {
		working(true)
		if cerr := w.fabric.Control(func(fd uintptr) { n, err = in.call(unix.SYS_RECVMMSG, fd, batchSize) }); cerr != nil {
			err = cerr
		}
		if err == unix.EAGAIN {
			working(false)
			return false
		}
		return true
	})
	if rerr != nil {
		err = rerr
	}
	return n, err
}

// takeBack receives one datagram in the guest's place, or returns EAGAIN. The
// descriptor's mode is QEMU's to choose, so the call itself says not to wait.
func (w *wire) takeBack(buf []byte) (n int, err error) {
	cerr := w.guest.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
	})
	return n, errors.Join(cerr, err)
}

// unreadByGuest is how much the kernel charges for frames that the guest's end
// has not read. Zero means none.
func (w *wire) unreadByGuest() (int, error) { return unread(w.fabric) }

// unreadByFabric is the same for frames from the guest.
func (w *wire) unreadByFabric() (int, error) { return unread(w.guest) }

func unread(c syscall.RawConn) (n int, err error) {
	cerr := c.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(cerr, err)
}

// setSendDeadline bounds send; a time in the past ends one that waits.
func (w *wire) setSendDeadline(t time.Time) error { return w.room.file.SetReadDeadline(t) }

// close ends who waits. Closing again is an error.
func (w *wire) close() error {
	return errors.Join(w.unwatch(), w.fabricEnd.Close(), w.guestEnd.Close())
}

// unwatch undoes newWire.
func (w *wire) unwatch() error { return errors.Join(w.arrivals.close(), w.room.close()) }
