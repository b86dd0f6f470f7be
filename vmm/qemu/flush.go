package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"fermata/vmm"
	"fermata/vmm/nbd"
	"fermata/vmm/qmp"
)

// QEMU has no command that flushes a disk and lets its main loop go on: where a disk
// hangs, stop and the like hold up the whole machine. Its server of network block
// devices does: each disk that the guest writes to is exported, read-only, on a socket
// in the machine's directory, and a flush through that waits for the disk alone.
const (
	disksName    = "fermata-disks" // of the listener, in the monitor
	exportPrefix = "fermata-"
)

// diskClient asks one disk.
type diskClient struct {
	disk   int // in Config.Disks
	client *nbd.Client
}

// FlushDisks implements vmm.DiskFlusher. Disks of a machine that somebody else started
// are read-only, so of these it looks only at requests that have no answer.
func (m *Machine) FlushDisks(ctx context.Context) error {
	if err := m.flushDisks(ctx); err != nil {
		return fmt.Errorf("ask the disks of guest %s: %w", m.Name(), err)
	}
	return nil
}

func (m *Machine) flushDisks(ctx context.Context) error {
	done, err := take(ctx, m.asking)
	if err != nil {
		return err
	}
	defer done()
	if err := m.readyDisks(ctx); err != nil {
		return err
	}
	if err := m.flushEach(ctx); err != nil {
		return err
	}
	return m.awaitAnswers(ctx)
}

// confirmFlush makes sure that a stop has written everything out: the command does not
// say whether its flush has failed. A disk that has nothing to write answers at once.
func (m *Machine) confirmFlush(ctx context.Context) error {
	done, err := take(ctx, m.asking)
	if err != nil {
		return err
	}
	defer done()
	return m.flushEach(ctx)
}

// flushEach flushes all disks that can be asked, at once.
//
// Preconditions: the caller has asking.
func (m *Machine) flushEach(ctx context.Context) error {
	errs := make([]error, len(m.disks))
	var wg sync.WaitGroup
	for i, d := range m.disks {
		wg.Go(func() { errs[i] = d.client.Flush(ctx) })
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			continue
		}
		name := m.state.Config.Disks[m.disks[i].disk].Name
		if ctx.Err() != nil {
			errs[i] = fmt.Errorf("%w: disk %s has not answered a flush: %w", vmm.ErrDisk, name, err)
		} else {
			errs[i] = fmt.Errorf("%w: disk %s cannot write out what the guest has written: %w", vmm.ErrDisk, name, m.explain(ctx, err))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		m.dropDisks() // an answer may still come on a connection
	}
	return err
}

// readyDisks connects to the disks that the guest writes to.
//
// Preconditions: the caller has asking.
func (m *Machine) readyDisks(ctx context.Context) error {
	var want []int
	for i, d := range m.state.Config.Disks {
		if !d.ReadOnly {
			want = append(want, i)
		}
	}
	if len(m.disks) == len(want) {
		return nil
	}
	m.dropDisks()
	if err := m.serveDisks(ctx, want); err != nil {
		return fmt.Errorf("serve disks: %w", err)
	}
	for _, i := range want {
		conn, err := qmp.Connect(ctx, m.state.Config.disksPath())
		if err != nil {
			return m.explain(ctx, err)
		}
		c, err := nbd.New(ctx, conn, exportName(i))
		if err != nil {
			return m.explain(ctx, err)
		}
		m.disks = append(m.disks, &diskClient{disk: i, client: c})
	}
	return nil
}

func exportName(disk int) string { return exportPrefix + blockNode(disk) }

// serveDisks has QEMU serve disks, unless it does since an earlier time.
func (m *Machine) serveDisks(ctx context.Context, disks []int) error {
	var exports []struct{ ID string }
	if err := m.execute(ctx, "query-block-exports", nil, &exports); err != nil {
		return err
	}
	path := m.state.Config.disksPath()
	if conn, err := qmp.Connect(ctx, path); err == nil {
		conn.Close()
	} else {
		if err := m.startServer(ctx, path); err != nil {
			return err
		}
		exports = nil
	}
	for _, i := range disks {
		if slices.ContainsFunc(exports, func(e struct{ ID string }) bool { return e.ID == exportName(i) }) {
			continue
		}
		err := m.execute(ctx, "block-export-add", map[string]any{
			"type": "nbd", "id": exportName(i), "node-name": blockNode(i), "name": exportName(i), "writable": false,
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// startServer starts the server on a new socket. One that has lost its socket is
// ended, and its exports with it.
func (m *Machine) startServer(ctx context.Context, path string) error {
	var refused *qmp.Error
	if err := m.execute(ctx, "nbd-server-stop", nil, nil); err != nil && !errors.As(err, &refused) {
		return err
	}
	if err := removeFiles(path); err != nil {
		return err
	}
	l, err := qmp.Listen(path)
	if err != nil {
		return err
	}
	f, err := listenerFile(l)
	if err != nil {
		return err
	}
	defer f.Close()
	err = m.giveListener(ctx, f)
	if err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func (m *Machine) giveListener(ctx context.Context, f *os.File) error {
	mon, err := m.connect(ctx)
	if err != nil {
		return err
	}
	if err := m.explain(ctx, mon.GetFD(ctx, disksName, f)); err != nil {
		return err
	}
	return m.execute(ctx, "nbd-server-start", map[string]any{
		"addr": map[string]any{"type": "fd", "data": map[string]string{"str": disksName}},
	}, nil)
}

// dropDisks ends the connections. The exports stay.
//
// Preconditions: the caller has asking.
func (m *Machine) dropDisks() {
	for _, d := range m.disks {
		_ = d.client.Close() // holds nothing
	}
	m.disks = nil
}
