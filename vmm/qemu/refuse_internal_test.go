package qemu

import (
	"testing"

	"fermata/vmm/qmp"
)

// TestLosesState: a QEMU that names its blockers itself needs no list.
func TestLosesState(t *testing.T) {
	for _, tc := range []struct {
		version qmp.Version
		kind    string
		want    bool
	}{
		{qmp.Version{Major: 5, Minor: 2}, "nvme", true},
		{qmp.Version{Major: 5, Minor: 2}, "vfio-pci", true},
		{qmp.Version{Major: 5, Minor: 2}, "virtio-net-pci", false},
		{qmp.Version{Major: 7, Minor: 2}, "nvme", false},
	} {
		if got := losesState(tc.version, tc.kind); got != tc.want {
			t.Errorf("QEMU %s, %s: %v, want %v", tc.version, tc.kind, got, tc.want)
		}
	}
}
