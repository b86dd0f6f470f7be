package qemu

import (
	"context"
	"fmt"
	"strings"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// OnError is what QEMU does with a request of a disk that the host cannot carry out.
type OnError string

const (
	// OnErrorDefault is OnErrorNoSpace for writes and OnErrorReport for reads.
	OnErrorDefault OnError = ""
	// OnErrorNoSpace stops the guest when the host has no room for a write, and reports
	// other errors to it. Not for reads.
	OnErrorNoSpace OnError = "enospc"
	// OnErrorStop stops the guest at any error.
	OnErrorStop OnError = "stop"
	// OnErrorReport reports any error to the guest, whose file system usually turns
	// read-only.
	OnErrorReport OnError = "report"
)

// errorPolicy is the part of a disk's device argument that says what happens at errors.
// Defaults are left out: the arguments of a disk without a policy are those of
// checkpoints that were taken before there was one.
func (d Disk) errorPolicy() string {
	var b strings.Builder
	if d.WriteError != OnErrorDefault && d.WriteError != OnErrorNoSpace {
		b.WriteString(",werror=" + string(d.WriteError))
	}
	if d.ReadError != OnErrorDefault && d.ReadError != OnErrorReport {
		b.WriteString(",rerror=" + string(d.ReadError))
	}
	return b.String()
}

// blockInfo is what query-block says of a disk (BlockInfo in qapi/block-core.json).
type blockInfo struct {
	Device   string `json:"device"`
	QDev     string `json:"qdev"`      // the device's path or id
	IOStatus string `json:"io-status"` // ok, failed or nospace; empty: errors do not stop the guest
}

// DiskErrors implements vmm.DiskWatcher.
func (m *Machine) DiskErrors(ctx context.Context) ([]vmm.DiskError, error) {
	var s qmp.RunState
	var disks []blockInfo
	err := m.batch(ctx, &qmp.Call{Name: "query-status", Result: &s}, &qmp.Call{Name: "query-block", Result: &disks})
	if err != nil {
		return nil, fmt.Errorf("disk errors of guest %s: %w", m.Name(), err)
	}
	m.saw(s)
	if statusOf(s) != vmm.StatusIOError {
		return nil, nil
	}
	var all []vmm.DiskError
	for _, d := range disks {
		if d.IOStatus == "nospace" || d.IOStatus == "failed" {
			all = append(all, vmm.DiskError{Disk: m.diskName(d), NoSpace: d.IOStatus == "nospace"})
		}
	}
	return all, nil
}

// diskName is the name that the configuration has for a disk. virtio-blk is listed by
// the path of its inner device: /machine/peripheral/disk-NAME/virtio-backend.
func (m *Machine) diskName(d blockInfo) string {
	for part := range strings.SplitSeq(d.QDev, "/") {
		if name, ours := strings.CutPrefix(part, "disk-"); ours && m.state.Foreign == nil {
			return name
		}
	}
	if d.Device != "" {
		return d.Device
	}
	return d.QDev
}
