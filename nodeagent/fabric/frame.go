package fabric

import (
	"bytes"
	"encoding/binary"
)

const (
	// MinFrame is an Ethernet header without payload.
	MinFrame = 14
	// MaxFrame is the largest frame QEMU passes on (NET_BUFSIZE in its
	// include/net/net.h): 64 KiB of payload and generous room for headers.
	MaxFrame = 4096 + 65536

	// frameOverhead is charged for each queued frame on top of its bytes: slice
	// header, queue slot and the allocator's rounding. It makes a limit in
	// bytes a limit on frames too.
	frameOverhead = 64
)

// macAddress is a hardware address as a map key.
type macAddress [6]byte

// isGroup tells broadcast and multicast addresses.
func (m macAddress) isGroup() bool { return m[0]&1 == 1 }

// frame is one Ethernet frame on its way to a NIC. Its bytes never change, so
// that a flooded frame is shared by all its receivers.
type frame struct {
	data  []byte
	epoch uint64 // the sender's colour when the frame was sent
}

// colourless is the epoch of a frame from outside the cluster. It takes the colour of
// the first queue that it waits in: a link's, which is that of its last marker, or the
// receiver's own.
const colourless = 0

func (f frame) cost() int { return len(f.data) + frameOverhead }

func destination(data []byte) macAddress { return macAddress(data[0:6]) }
func source(data []byte) macAddress      { return macAddress(data[6:12]) }

// etherTypeSentinel is IEEE 802 local experimental EtherType 1: nothing on a
// guest listens for it.
const etherTypeSentinel = 0x88B5

// sentinelPrefix begins the locally administered addresses of sentinels. No
// NIC may have such an address.
var sentinelPrefix = [3]byte{0x02, 0xfe, 0x5e}

// sentinelLen is the smallest Ethernet frame on a real wire; shorter ones are
// padded by some NIC models and would not compare equal.
const sentinelLen = 60

// sentinel is the frame whose being read proves that everything before it was
// delivered. The nonce tells it from any frame a guest can make up.
func newSentinel(nonce [16]byte) []byte {
	s := make([]byte, 0, sentinelLen)
	s = append(s, sentinelPrefix[0], sentinelPrefix[1], sentinelPrefix[2], 0, 0, 1)
	s = append(s, sentinelPrefix[0], sentinelPrefix[1], sentinelPrefix[2], 0, 0, 2)
	s = binary.BigEndian.AppendUint16(s, etherTypeSentinel)
	s = append(s, "fermata sentinel"...)
	s = append(s, nonce[:]...)
	return s[:sentinelLen]
}

// isSentinel tells whether data is sentinel, whatever padding it got.
func isSentinel(data, sentinel []byte) bool {
	return len(data) >= len(sentinel) && bytes.Equal(data[:len(sentinel)], sentinel)
}
