package guests

import (
	"bytes"
	"encoding/binary"
)

// Of programs/src/canary.h.
const (
	dataPort      = 7700
	dataEtherType = 0x88b6
	magic         = 0x464d4331
	kindData      = 1
	receiptMagic  = 0x5443454d46414d52
	receiptMask   = 0xa5a5a5a5a5a5a5a5
)

// Datagram is what the canary sends, of which its hash says which one it is: it is the
// hash of all, sender, receiver, wire and number among it.
type Datagram struct {
	Hash   uint64
	To     string // the receiver
	Number uint64
}

// DatagramOf finds the canary's datagram in an Ethernet frame. False: the frame holds
// none, or a part of a stream.
func DatagramOf(frame []byte) (Datagram, bool) {
	const bare, udp, udpPort = 14, 42, 36
	var b []byte
	switch {
	case len(frame) < udp:
		return Datagram{}, false
	case binary.BigEndian.Uint16(frame[12:]) == dataEtherType:
		b = frame[bare:]
	case binary.BigEndian.Uint16(frame[12:]) == 0x0800 && frame[23] == 17 && binary.BigEndian.Uint16(frame[udpPort:]) == dataPort:
		b = frame[udp:]
	}
	if len(b) < 32 || binary.LittleEndian.Uint32(b[8:]) != magic || b[12] != kindData {
		return Datagram{}, false
	}
	return Datagram{Hash: binary.LittleEndian.Uint64(b), To: Name(int(b[14])), Number: binary.LittleEndian.Uint64(b[16:])}, true
}

// Traces is what is found of canaries' datagrams in a guest's memory, by their hashes.
type Traces struct {
	Bytes    map[uint64]int // the datagram itself: buffers of programs and of the kernel, and what they left
	Receipts map[uint64]int // that the guest's canary has received it
}

// Search looks through memory.
func Search(memory []byte) Traces {
	t := Traces{Bytes: map[uint64]int{}, Receipts: map[uint64]int{}}
	each(memory, binary.LittleEndian.AppendUint32(nil, magic), func(at int) {
		if at >= 8 && at+5 <= len(memory) && memory[at+4] == kindData {
			t.Bytes[binary.LittleEndian.Uint64(memory[at-8:])]++
		}
	})
	each(memory, binary.LittleEndian.AppendUint64(nil, receiptMagic), func(at int) {
		if at+16 <= len(memory) {
			t.Receipts[binary.LittleEndian.Uint64(memory[at+8:])^receiptMask]++
		}
	})
	return t
}

// each calls f with every place of pattern.
func each(memory, pattern []byte, f func(at int)) {
	for from := 0; ; {
		i := bytes.Index(memory[from:], pattern)
		if i < 0 {
			return
		}
		f(from + i)
		from += i + 1
	}
}
