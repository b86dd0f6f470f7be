package qemu

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"fermata/vmm"
)

// view is where a part of a RAM block appears to the guest.
type view struct {
	region string // name of QEMU's memory region: the block's, without the device's path
	guest  uint64 // guest-physical address
	last   uint64 // address of its last byte
	offset uint64 // in the block, bytes
}

// is tells whether the view is of this block.
func (v view) is(block string) bool {
	return block == v.region || strings.HasSuffix(block, "/"+v.region)
}

var viewLine = regexp.MustCompile(`^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom|romd|nv-ram)\): (\S+)(?: @([0-9a-f]{16}))?`)

// parseViews reads the RAM and ROM in "info mtree -f".
func parseViews(text string) (views []view) {
	for line := range strings.Lines(text) {
		f := viewLine.FindStringSubmatch(line)
		if f == nil {
			continue
		}
		guest, err := strconv.ParseUint(f[1], 16, 64)
		if err != nil {
			continue
		}
		last, err := strconv.ParseUint(f[2], 16, 64)
		if err != nil {
			continue
		}
		offset, _ := strconv.ParseUint(f[4], 16, 64) // absent: 0
		views = append(views, view{f[3], guest, last, offset})
	}
	return views
}

var hostLine = regexp.MustCompile(`is (0x[0-9a-f]+)`)

// hostAddress asks where a guest-physical address lies in the process.
func (m *Machine) hostAddress(ctx context.Context, guest uint64) (uint64, error) {
	text, err := m.human(ctx, fmt.Sprintf("gpa2hva %#x", guest))
	if err != nil {
		return 0, err
	}
	f := hostLine.FindStringSubmatch(text)
	if f == nil {
		return 0, fmt.Errorf("%w: gpa2hva says %.80q", vmm.ErrUnsupported, text)
	}
	return strconv.ParseUint(f[1], 0, 64)
}
