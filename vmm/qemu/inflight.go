package qemu

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// Asking a busy disk again after this long costs nothing, and a disk that answers is
// seen soon.
const (
	answerPollFirst = 2 * time.Millisecond
	answerPollMost  = 50 * time.Millisecond
)

// queue is a queue of a virtio disk that had requests when it was first looked at.
type queue struct {
	path string // of the device
	n    int
	used uint16 // requests answered so far, modulo 2^16
}

func (q queue) device() string {
	return strings.TrimPrefix(path.Base(path.Dir(q.path)), "disk-")
}

// awaitAnswers returns when every virtio disk has answered a request since, or has
// none. QEMU waits for all requests in a stop, in its main loop.
//
// What it does not see: a single request that hangs while the disk answers others, and
// disks of other kinds, or of a QEMU before 7.2.
func (m *Machine) awaitAnswers(ctx context.Context) error {
	busy, err := m.busyQueues(ctx)
	if err != nil || len(busy) == 0 {
		return err
	}
	err = poll(ctx, answerPollFirst, answerPollMost, func() (bool, error) {
		for _, q := range slices.Clone(busy) {
			now, used, err := m.queueStatus(ctx, q.path, q.n)
			if err != nil {
				return false, err
			}
			if now == 0 || used != q.used {
				busy = slices.DeleteFunc(busy, func(o queue) bool { return o.path == q.path && o.n == q.n })
			}
		}
		return len(busy) == 0, nil
	})
	if err == nil || ctx.Err() == nil || len(busy) == 0 {
		return err
	}
	return fmt.Errorf("%w: disk %s has not answered a request of the guest: %w", vmm.ErrDisk, busy[0].device(), err)
}

// busyQueues lists the queues of virtio disks that have requests.
func (m *Machine) busyQueues(ctx context.Context) (busy []queue, err error) {
	if m.state.Foreign == nil && len(m.state.Config.Disks) == 0 {
		return nil, nil
	}
	var devices []struct{ Path, Name string }
	var refused *qmp.Error
	err = m.execute(ctx, "x-query-virtio", nil, &devices)
	if errors.As(err, &refused) { // not in this version
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if d.Name != "virtio-blk" {
			continue
		}
		for n := 0; ; n++ {
			requests, used, err := m.queueStatus(ctx, d.Path, n)
			if errors.As(err, &refused) { // there are no more
				break
			}
			if err != nil {
				return nil, err
			}
			if requests > 0 {
				busy = append(busy, queue{d.Path, n, used})
			}
		}
	}
	return busy, nil
}

// queueStatus returns how many requests a queue has that are not answered, and how many
// were answered.
func (m *Machine) queueStatus(ctx context.Context, device string, n int) (requests uint32, used uint16, err error) {
	var s struct {
		InUse uint32 `json:"inuse"`
		Used  uint16 `json:"used-idx"`
	}
	err = m.execute(ctx, "x-query-virtio-queue-status", map[string]any{"path": device, "queue": n}, &s)
	return s.InUse, s.Used, err
}
