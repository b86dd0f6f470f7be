package fabric

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many frames one system call moves. A frame of 64 bytes costs a
// microsecond to switch, and a call about one, too: beyond 16 there is little to gain,
// and what is in the hands of a reader delays a cut.
const batchSize = 16

// batch is what recvmmsg(2) and sendmmsg(2) take: places of datagrams.
//
// Concurrency: one goroutine at a time.
type batch struct {
	headers []mmsghdr
	vectors []unix.Iovec
}

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	header unix.Msghdr
	length uint32 // of what was moved
	_      [4]byte
}

func newBatch() batch {
	b := batch{headers: make([]mmsghdr, batchSize), vectors: make([]unix.Iovec, batchSize)}
	for i := range b.headers {
		b.headers[i].header.Iov = &b.vectors[i]
		b.headers[i].header.SetIovlen(1)
	}
	return b
}

// newInBatch makes a batch with a buffer of its own in each place. The memory of long
// frames is touched only when they come.
func newInBatch() (b batch, buffers [][]byte) {
	b = newBatch()
	buffers = make([][]byte, batchSize)
	for i := range buffers {
		buffers[i] = make([]byte, MaxFrame+1)
		b.set(i, buffers[i])
	}
	return b, buffers
}

// set puts data, which is not empty, in place i.
func (b *batch) set(i int, data []byte) {
	b.vectors[i].Base = &data[0]
	b.vectors[i].SetLen(len(data))
}

// clear lets the data of the first n places be collected.
func (b *batch) clear(n int) {
	for i := range n {
		b.vectors[i].Base = nil
	}
}

// call moves the first n datagrams by sendmmsg or recvmmsg, without waiting, and
// returns how many were. On error none was.
func (b *batch) call(number, fd uintptr, n int) (int, error) {
	for {
		// Neither call is wrapped by x/sys. The pointer is to headers that b holds, of which
		// there are batchSize; what they point to, b holds, too.
		moved, _, errno := unix.Syscall6(number, fd, uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(moved), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
