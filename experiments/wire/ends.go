package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socketEnd is a blocking socket on which a datagram is a frame.
type socketEnd struct{ fd int }

// newSocketEnd owns fd from here on.
func newSocketEnd(fd int) (*socketEnd, error) {
	for _, set := range []func() error{
		func() error { return unix.SetNonblock(fd, false) },
		func() error {
			timeout := unix.NsecToTimeval(idle.Nanoseconds())
			return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
		},
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("set up socket: %w", err)
		}
	}
	return &socketEnd{fd}, nil
}

// dupEnd makes an end of a descriptor of its own for f.
func dupEnd(f *os.File) (*socketEnd, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil || err != nil {
		return nil, fmt.Errorf("duplicate socket: %w", err)
	}
	return newSocketEnd(fd)
}

func (e *socketEnd) send(frame []byte) error {
	for {
		_, err := unix.Write(e.fd, frame)
		switch err {
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS: // a packet socket says so when its queue is full
			continue
		}
		return err
	}
}

func (e *socketEnd) receive(buf []byte) (int, error) {
	for {
		n, err := unix.Read(e.fd, buf)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (e *socketEnd) close() error { return unix.Close(e.fd) }

// streamEnd speaks the protocol of QEMU's socket netdev: the length of a frame in four
// bytes, big-endian, and the frame (net/socket.c of QEMU).
type streamEnd struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func newStreamEnd(conn net.Conn) *streamEnd {
	return &streamEnd{conn: conn, in: bufio.NewReaderSize(conn, 1<<17), out: make([]byte, lengthBytes+1<<16)}
}

const lengthBytes = 4

func (e *streamEnd) send(frame []byte) error {
	binary.BigEndian.PutUint32(e.out, uint32(len(frame)))
	n := lengthBytes + copy(e.out[lengthBytes:], frame)
	_, err := e.conn.Write(e.out[:n])
	return err
}

func (e *streamEnd) receive(buf []byte) (int, error) {
	head, err := e.peek(lengthBytes)
	if err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint32(head))
	whole, err := e.peek(lengthBytes + n)
	if err != nil {
		return 0, err
	}
	copy(buf, whole[lengthBytes:])
	_, err = e.in.Discard(len(whole))
	return n, err
}

// peek waits for n bytes, no longer than idle.
func (e *streamEnd) peek(n int) ([]byte, error) {
	if e.in.Buffered() < n {
		if err := e.conn.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return nil, err
		}
	}
	b, err := e.in.Peek(n)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, unix.EAGAIN
	}
	return b, err
}

func (e *streamEnd) close() error { return e.conn.Close() }
