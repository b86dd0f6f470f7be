package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// Names that a descriptor has in the monitor while a stream passes through it.
const (
	sendName    = "fermata-send"
	receiveName = "fermata-receive"
)

// Loading takes 20 to 30 ms, most of it QEMU's own; asking each half
// millisecond at first costs it nothing.
const (
	loadPollFirst = 500 * time.Microsecond
	loadPollMost  = 10 * time.Millisecond
)

// cleanupTime bounds what is tidied in QEMU after a call that failed.
const cleanupTime = 2 * time.Second

// SaveDevices implements vmm.Machine. With SaveMigrate the block devices stay
// inactive until Continue.
func (m *Machine) SaveDevices(ctx context.Context) ([]byte, error) {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return nil, fmt.Errorf("save devices of guest %s: %w", m.Name(), err)
	}
	defer done()
	record, err := m.saveDevices(ctx)
	if err != nil {
		return nil, fmt.Errorf("save devices of guest %s: %w", m.Name(), err)
	}
	return record, nil
}

func (m *Machine) saveDevices(ctx context.Context) ([]byte, error) {
	if m.state.Config.Save == SaveMigrate {
		s, err := m.runState(ctx)
		if err == nil {
			err = standsStill(s)
		}
		if err != nil {
			return nil, err
		}
		return m.saveByMigration(ctx, s.Status == "postmigrate")
	}
	state, err := m.saveByXen(ctx)
	if err != nil {
		return nil, err
	}
	return state.encode(), nil
}

// standsStill refuses a guest that runs: QEMU itself would stop it, save it and
// let it run on, a cut that nobody else took part in.
func standsStill(s qmp.RunState) error {
	if statusOf(s) != vmm.StatusPaused {
		return fmt.Errorf("%w: it is %s", vmm.ErrNotStopped, s.Status)
	}
	return nil
}

// saveFile is a file in memory that QEMU writes device streams to, over one
// connection to its monitor. Passed as a descriptor it needs no path: a process
// may be confined to where no path of ours leads, and a file system on a disk
// would take a part of the pause.
type saveFile struct {
	mon  *qmp.Client
	file *os.File // write-only: QEMU looks in the set for a descriptor of the very mode it opens with
	set  qmp.FDSet
}

// ReadySave makes ready what SaveDevices needs, so that it takes less of a pause, and
// refuses a machine that cannot be saved: its owner may have plugged in a device, a
// disk or memory since the last time. The error names it.
func (m *Machine) ReadySave(ctx context.Context) error {
	done, err := m.takeTurn(ctx)
	if err == nil {
		if err = m.refuseUnsavable(ctx); err == nil {
			err = m.readySave(ctx)
		}
		done()
	}
	if err != nil {
		return fmt.Errorf("ready guest %s: %w", m.Name(), err)
	}
	return nil
}

// readySave makes the file for the next save, and finds the memory to read beside it.
//
// Preconditions: the caller has the turn.
func (m *Machine) readySave(ctx context.Context) error {
	if m.state.Config.Save == SaveMigrate {
		return nil
	}
	if err := m.readyFirmware(ctx); err != nil {
		return err
	}
	return m.readySaveFile(ctx)
}

// readySaveFile makes the file, if there is none on the present connection.
//
// Preconditions: the caller has the turn.
func (m *Machine) readySaveFile(ctx context.Context) error {
	mon, err := m.connect(ctx)
	if err != nil {
		return err
	}
	if m.save.mon == mon {
		return nil
	}
	m.dropSave(ctx)
	fd, err := unix.MemfdCreate("fermata-devices", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(fd)
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	set, err := mon.AddFD(ctx, file)
	if err != nil {
		return errors.Join(m.explain(ctx, err), file.Close())
	}
	m.save = saveFile{mon: mon, file: file, set: set}
	return nil
}

// dropSave forgets the file. A monitor that is left by all who spoke to it closes
// its copy by itself (monitor_fdsets_cleanup in QEMU's monitor/fds.c); one that
// somebody else speaks to as well is asked to.
//
// Preconditions: the caller has the turn.
func (m *Machine) dropSave(ctx context.Context) {
	if m.save.file == nil {
		return
	}
	if m.state.Foreign != nil {
		_ = m.save.mon.RemoveFD(ctx, m.save.set) // the connection may have broken
	}
	_ = m.save.file.Close() // holds nothing that is still wanted
	m.save = saveFile{}
}

// saveByXen has QEMU write the stream to the save file, and reads the blocks that are
// not in it. live:false keeps the block devices active.
func (m *Machine) saveByXen(ctx context.Context) (state deviceState, err error) {
	if err := m.readySaveFile(ctx); err != nil {
		return state, err
	}
	if m.firmware.mem == nil { // nobody called ReadySave
		if err := m.readyFirmware(ctx); err != nil {
			return state, err
		}
	}
	if m.state.Foreign != nil { // whose owner may plug something in at any time
		if err := m.refuseBlocked(ctx); err != nil {
			return state, err
		}
	}
	// The descriptors share their place in the file (dup(2)).
	f := m.save.file
	if err := f.Truncate(0); err != nil {
		return state, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return state, err
	}
	var s qmp.RunState
	var blocks string
	asked := &qmp.Call{Name: "query-status", Result: &s}
	saved := &qmp.Call{Name: "xen-save-devices-state", Arguments: map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", m.save.set.ID), "live": false,
	}}
	listed := &qmp.Call{Name: "human-monitor-command", Arguments: map[string]string{"command-line": "info ramblock"}, Result: &blocks}
	err = m.batch(ctx, asked, saved, listed)
	if asked.Err == nil {
		m.saw(s)
		if err := standsStill(s); err != nil {
			return state, err
		}
	}
	if err != nil {
		return state, err
	}
	state.method = methodXen
	if state.blocks, err = m.readFirmware(blocks); err != nil {
		return state, err
	}
	state.stream, err = m.readStream(f)
	return state, err
}

// readStream returns what a file that is open for writing holds.
func (m *Machine) readStream(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := m.checkSize(st.Size()); err != nil {
		return nil, err
	}
	return os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// checkSize refuses a stream that cannot be device state alone.
func (m *Machine) checkSize(n int64) error {
	memory := m.state.Config.MemoryBytes
	if limit := maxStateBytes(memory); n <= 0 || uint64(n) > limit {
		return fmt.Errorf("%w: %d bytes for %d of memory, at most %d: memory went into the stream",
			vmm.ErrStateSize, n, memory, limit)
	}
	return nil
}

// LoadDevices implements vmm.Machine.
func (m *Machine) LoadDevices(ctx context.Context, state []byte) (vmm.Loaded, error) {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return vmm.Loaded{}, fmt.Errorf("load devices of guest %s: %w", m.Name(), err)
	}
	defer done()
	loaded, err := m.loadDevices(ctx, state)
	if err != nil {
		return vmm.Loaded{}, fmt.Errorf("load devices of guest %s: %w", m.Name(), err)
	}
	return loaded, nil
}

func (m *Machine) loadDevices(ctx context.Context, record []byte) (loaded vmm.Loaded, err error) {
	state, err := decodeRecord(record)
	if err != nil {
		return loaded, err
	}
	if err := m.checkSize(int64(len(state.stream))); err != nil {
		return loaded, err
	}
	s, err := m.runState(ctx)
	if err != nil {
		return loaded, err
	}
	if statusOf(s) != vmm.StatusIncoming {
		return loaded, fmt.Errorf("%w: it is %s", vmm.ErrNotIncoming, s.Status)
	}
	// A migration has the blocks in its stream.
	blocks := state.blocks
	if state.method == methodXen {
		if blocks, loaded, err = m.restoredBlocks(ctx, blocks); err != nil {
			return loaded, err
		}
	}
	stream, err := m.incomingStream(state.stream, blocks)
	if err != nil {
		return loaded, err
	}
	// Both ends of a migration without RAM must say so; the other stream has main RAM
	// in no section at all.
	if err := m.ignoreShared(ctx, state.method == methodMigrate); err != nil {
		return loaded, err
	}
	if err := m.keepQuiet(ctx); err != nil {
		return loaded, err
	}
	if err := m.receive(ctx, stream); err != nil {
		return loaded, err
	}
	return loaded, m.awaitLoaded(ctx)
}

// incomingStream makes of a saved stream the one that the machine is given.
func (m *Machine) incomingStream(stream []byte, blocks []blockBytes) ([]byte, error) {
	stream, err := withoutAnnouncements(stream)
	if err != nil {
		return nil, err
	}
	if m.state.Foreign == nil || m.state.Foreign.Configuration {
		stream = withConfiguration(stream, m.state.Description.Machine)
	}
	return withBlocks(stream, blocks)
}

// keepQuiet has QEMU send no announcement for the cards after a load: by default it
// sends RARP frames.
func (m *Machine) keepQuiet(ctx context.Context) error {
	return m.execute(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0}, nil)
}

// receive feeds the stream to the monitor through a pipe.
func (m *Machine) receive(ctx context.Context, stream []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	mon, err := m.connect(ctx)
	if err == nil {
		err = m.explain(ctx, mon.GetFD(ctx, receiveName, r))
	}
	if err == nil {
		err = m.execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:" + receiveName}, nil)
	}
	if err != nil {
		return errors.Join(err, w.Close())
	}
	// QEMU has its copy; with ours gone a QEMU that dies ends the write below.
	r.Close()
	stop := context.AfterFunc(ctx, func() { w.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := w.Write(stream); err != nil {
		w.Close()
		return m.explain(ctx, fmt.Errorf("write device stream: %w", err))
	}
	return w.Close()
}

// awaitLoaded returns when the stream is loaded and the guest stands still. A
// QEMU that cannot load it says why in its log and exits, or (10 and later)
// reports a failed migration.
func (m *Machine) awaitLoaded(ctx context.Context) error {
	return poll(ctx, loadPollFirst, loadPollMost, func() (bool, error) {
		s, err := m.runState(ctx)
		if err != nil {
			return false, err
		}
		switch statusOf(s) {
		case vmm.StatusPaused:
			return true, nil
		case vmm.StatusIncoming:
			progress, err := m.queryMigrate(ctx)
			if err == nil && progress.Status == "failed" {
				err = fmt.Errorf("the monitor refuses the state: %s: %s", progress.ErrorDesc, logTail(m.state.LogPath))
			}
			return false, err
		default:
			return false, fmt.Errorf("the guest is %s after its state was loaded", s.Status)
		}
	})
}
