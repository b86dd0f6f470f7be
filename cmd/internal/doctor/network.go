package doctor

import (
	"fmt"
	"strconv"
)

const (
	// minSendBuffer is what one datagram of the largest frame and the kernel's
	// bookkeeping take in a socket's buffer, times the frames that must fit for
	// a guest not to wait for the switch at each of them.
	minSendBuffer = 128 << 10

	// minQueue is the kernel's own default: fewer datagrams and every burst of
	// a guest waits.
	minQueue = 10
)

// unixSockets looks at the limits of the sockets between QEMU and the fabric.
func (m machine) unixSockets() finding {
	queue, err := m.number("/proc/sys/net/unix/max_dgram_qlen")
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	buffer, err := m.number("/proc/sys/net/core/wmem_max")
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	text := fmt.Sprintf("%d datagrams queued, buffers up to %d KiB", queue, buffer>>10)
	switch {
	case queue < minQueue:
		return warn(fmt.Sprintf("set net.unix.max_dgram_qlen=%d or more: frames to guests wait otherwise", minQueue), "%s", text)
	case buffer < minSendBuffer:
		return warn(fmt.Sprintf("set net.core.wmem_max=%d or more: frames of guests wait otherwise", minSendBuffer), "%s", text)
	}
	return ok("%s", text)
}

func (m machine) number(path string) (int, error) {
	text, err := m.read(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
