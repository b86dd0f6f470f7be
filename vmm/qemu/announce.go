package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"fermata/vmm"
)

// Cards must not announce themselves after a restore: the guest never sent those
// frames, and the network is put back as it was. The parameter announce-rounds=0 sees
// to that, but has a trap. When virtio-net is loaded and its guest has negotiated
// VIRTIO_NET_F_GUEST_ANNOUNCE, it makes a timer for the announcement, and with no round
// to make it frees the timer (virtio_net_post_load_device in hw/net/virtio-net.c).
// virtio_net_reset stops that timer without asking whether there is one: the next reset
// of the card, by a reboot or by the guest's driver, ends QEMU with SIGSEGV.
//
// So what the loading code sees of the guest's features lacks that one. It looks at
// a copy of the lower 32 that stands early in the card's state. All features follow in a
// subsection, which gives the card what the guest has negotiated. (A card
// that is legacy only has no such subsection. It believes until its next reset that the
// guest takes no announcements, which is harmless.)
const (
	featureGuestAnnounce = 1 << 21

	virtioNet    = "/virtio-net"
	redHat       = 0x1af4 // PCI vendor of virtio devices
	capabilities = 0x34   // where a PCI device's list of capabilities begins
	msix         = 0x11   // number of a capability
)

// withoutAnnouncements returns the stream with virtio-net cards that do not announce
// themselves.
func withoutAnnouncements(stream []byte) ([]byte, error) {
	out := slices.Clone(stream)
	for from := 0; ; {
		i := bytes.Index(out[from:], []byte(virtioNet))
		if i < 0 {
			return out, nil
		}
		end := from + i + len(virtioNet)
		from = end
		name, ok := sectionName(out, end)
		if !ok {
			continue // the bytes stand in something else
		}
		at, err := guestFeatures(out[min(end+8, len(out)):]) // after instance and version
		if err != nil {
			return nil, fmt.Errorf("%w: state of card %s: %w", vmm.ErrUnsupported, name, err)
		}
		features := out[end+8+at:][:4]
		binary.BigEndian.PutUint32(features, binary.BigEndian.Uint32(features)&^featureGuestAnnounce)
	}
}

// sectionName returns the name of the section whose name ends there, if one does.
func sectionName(stream []byte, end int) (string, bool) {
	const before = 6 // kind, number and the name's length
	for n := len(virtioNet); n <= 255 && end-n-before >= 0; n++ {
		name := stream[end-n : end]
		if name[0] < ' ' || name[0] > '~' {
			if int(stream[end-n]) != n-1 {
				return "", false
			}
		}
		if int(stream[end-n-1]) == n && stream[end-n-before] == sectionFull {
			return string(name), true
		}
	}
	return "", false
}

// guestFeatures returns where, in the state of a virtio-net-pci card, the lower 32 of
// the guest's features stand (virtio_save in hw/virtio/virtio.c).
func guestFeatures(state []byte) (int, error) {
	for _, size := range []int{256, 4096} { // configuration space of PCI and PCI Express
		if at, ok := featuresBehind(state, size); ok {
			return at, nil
		}
	}
	return 0, fmt.Errorf("it has another form than known")
}

// featuresBehind looks behind a configuration space of so many bytes. The form:
//
//	version u32 LE, configuration space, interrupts 4 u32           pci_device_save
//	MSI-X table of 16 bytes an entry, a bit an entry, vector u16    msix_save, virtio_pci_save_config
//	status u8, isr u8, queue u16, features u32                      virtio_save
//	length of the card's configuration u32, configuration, number of queues u32, size of the first u32
func featuresBehind(state []byte, size int) (at int, ok bool) {
	if len(state) < 4+size+16 {
		return 0, false
	}
	space := state[4:][:size]
	if binary.LittleEndian.Uint16(space) != redHat {
		return 0, false
	}
	at = 4 + size + 16
	if n := msixEntries(space); n > 0 {
		at += 16*n + (n+7)/8 + 2
	}
	at += 4
	features := at
	word := func() uint32 {
		if at < 0 || at+4 > len(state) {
			at = len(state) + 1
			return 0
		}
		at += 4
		return binary.BigEndian.Uint32(state[at-4:])
	}
	word() // the features
	config := word()
	const most = 256 // bytes of a card's configuration; QEMU's has 24 today
	if config < 6 || config > most {
		return 0, false
	}
	at += int(config)
	queues, first := word(), word()
	return features, queues >= 1 && queues <= 1024 && first <= 32768 && bits.OnesCount32(first) == 1
}

// msixEntries returns the size of the device's MSI-X table (PCI Local Bus
// Specification 3.0, 6.8.2); 0: it has none.
func msixEntries(space []byte) int {
	at := int(space[capabilities])
	for range 48 { // more do not fit into 192 bytes
		if at < 0x40 || at+4 > 256 {
			return 0
		}
		if space[at] == msix {
			return int(binary.LittleEndian.Uint16(space[at+2:])&0x7ff) + 1
		}
		at = int(space[at+1])
	}
	return 0
}
