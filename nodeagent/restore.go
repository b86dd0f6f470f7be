package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"fermata/imageio/repository"
	"fermata/imageio/vfs"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

// Bounds on what a manifest may make an agent allocate, in bytes.
const (
	maxDeviceState  = 160 << 20 // twice 64 MiB at most, as the driver has it, and what frames them
	maxChannelState = 512 << 20
)

// restore fills a machine that waits for its state: memory first, because
// loading devices reads rings in guest memory, then devices, then the frames
// that were on their way to the guest.
func (m *maker) restore(ctx context.Context) error {
	g := m.guest
	if err := m.checkMachine(ctx); err != nil {
		return err
	}
	for _, mem := range g.machine.Memory() {
		obj := findObject(m.image, kindMemory, mem.Name)
		if obj == nil || obj.SizeBytes != mem.Size {
			return fault.New(fault.Mismatch, "image of guest %s has no memory block %s of %d bytes", g.spec.Name, mem.Name, mem.Size)
		}
		if err := m.restoreMemory(ctx, obj, mem); err != nil {
			return fmt.Errorf("restore memory %s: %w", mem.Name, err)
		}
	}
	devices := findObject(m.image, kindDevices, kindDevices)
	if devices == nil {
		return fault.New(fault.Corrupt, "image of guest %s lacks its device state", g.spec.Name)
	}
	state, err := m.readBytes(ctx, devices, maxDeviceState)
	if err != nil {
		return fmt.Errorf("read device state: %w", err)
	}
	loaded, err := g.machine.LoadDevices(ctx, state)
	if err != nil {
		return fmt.Errorf("load device state: %w", machineFault(err))
	}
	m.tellLoaded(loaded)
	return m.injectRecorded(ctx)
}

// tellLoaded reports what a checkpoint of an earlier version lacked.
func (m *maker) tellLoaded(loaded vmm.Loaded) {
	log := m.agent.log.With("cluster", m.cluster.name, "guest", m.guest.spec.Name)
	if len(loaded.Replaced) > 0 {
		log.Info("checkpoint holds no firmware, used this host's", "blocks", loaded.Replaced)
	}
	if len(loaded.Missing) > 0 {
		log.Warn("checkpoint lacks memory of the machine, guest may not survive a reboot: restart it from a later checkpoint", "blocks", loaded.Missing)
	}
}

// checkMachine refuses to pour a state into a machine it was not taken from.
func (m *maker) checkMachine(ctx context.Context) error {
	g := m.guest
	var was qemu.Description
	if err := json.Unmarshal(m.image.Machine, &was); err != nil {
		return fault.Wrap(fault.Corrupt, err, "machine description of guest %s", g.spec.Name)
	}
	is, err := g.machine.Describe(ctx)
	if err != nil {
		return fmt.Errorf("describe machine: %w", err)
	}
	if err := was.Compatible(is); err != nil {
		return fault.Wrap(fault.Mismatch, err, "guest %s cannot be restored on node %s", g.spec.Name, m.agent.cfg.Name)
	}
	return nil
}

// restoreMemory writes one memory block through the file QEMU has mapped.
// Whatever QEMU put there while it started is dropped first, so that pages the
// image does not mention are zero.
func (m *maker) restoreMemory(ctx context.Context, obj *api.ImageObject, mem vmm.Memory) error {
	f, err := os.OpenFile(mem.Path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open memory file: %w", err)
	}
	defer f.Close()
	if mem.OfProcess() {
		dst := io.NewOffsetWriter(f, mem.Offset)
		if err := zero(ctx, dst, io.NewSectionReader(f, mem.Offset, int64(mem.Size))); err != nil {
			return fmt.Errorf("clear memory: %w", err)
		}
		return m.readObject(ctx, obj, dst)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, mem.Offset, int64(mem.Size)); err != nil {
		return fmt.Errorf("clear memory file: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("look at memory file: %w", err)
	}
	if fs.Type != unix.HUGETLBFS_MAGIC {
		return m.readObject(ctx, obj, io.NewOffsetWriter(f, mem.Offset))
	}
	// A file on hugetlbfs cannot be written to but by a mapping (hugetlbfs has no
	// write_iter, fs/hugetlbfs/inode.c). Its pages are reserved for QEMU's.
	mapped, err := unix.Mmap(int(f.Fd()), mem.Offset, int(mem.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map memory file: %w", err)
	}
	return errors.Join(m.readObject(ctx, obj, bytesAt(mapped)), unix.Munmap(mapped))
}

// bytesAt is memory that is written to at offsets.
type bytesAt []byte

// WriteAt implements io.WriterAt.
func (b bytesAt) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) {
		return 0, io.ErrShortWrite
	}
	n := copy(b[off:], p)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// zero writes zeros over whatever src, the same memory as dst, holds that is not
// zero.
func zero(ctx context.Context, dst io.WriterAt, src *io.SectionReader) error {
	var buf, zeros [64 << 10]byte
	for off := int64(0); off < src.Size(); off += int64(len(buf)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := src.ReadAt(buf[:], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Equal(buf[:n], zeros[:n]) {
			continue
		}
		if _, err := dst.WriteAt(zeros[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// readObject restores an object into dst, which holds zeros, and reports progress.
func (m *maker) readObject(ctx context.Context, obj *api.ImageObject, dst io.WriterAt) error {
	ref, err := refOf(obj)
	if err != nil {
		return err
	}
	err = m.reader.ReadImage(ctx, ref, dst, repository.ReadOptions{Progress: func(done int64) {
		m.updates.send(&api.CreateGuestsUpdate{Guest: m.guest.spec.Name, DoneBytes: uint64(done), TotalBytes: obj.SizeBytes})
	}})
	return repositoryFault(err)
}

func (m *maker) readBytes(ctx context.Context, obj *api.ImageObject, limit int64) ([]byte, error) {
	ref, err := refOf(obj)
	if err != nil {
		return nil, err
	}
	b, err := m.reader.ReadBytes(ctx, ref, limit)
	return b, repositoryFault(err)
}

func refOf(obj *api.ImageObject) (repository.Ref, error) {
	var ref repository.Ref
	if len(obj.Id) != len(ref.ID) {
		return ref, fault.New(fault.Corrupt, "object %s %s: address of %d bytes", obj.Kind, obj.Name, len(obj.Id))
	}
	copy(ref.ID[:], obj.Id)
	ref.Size = int64(obj.SizeBytes)
	return ref, nil
}

// repositoryFault gives an error of the repository its class.
func repositoryFault(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, repository.ErrCorrupt):
		return fault.Wrap(fault.Corrupt, err, "repository")
	case errors.Is(err, repository.ErrKeyMissing), errors.Is(err, repository.ErrWrongKey):
		return fault.Wrap(fault.Denied, err, "repository")
	case errors.Is(err, repository.ErrNotEncrypted):
		return fault.Wrap(fault.Invalid, err, "repository")
	case errors.Is(err, repository.ErrNotFound):
		return fault.Wrap(fault.Corrupt, err, "repository lacks an object")
	case errors.Is(err, repository.ErrNewerFormat):
		return fault.Wrap(fault.Mismatch, err, "repository")
	case errors.Is(err, repository.ErrPackMissing):
		return fault.Wrap(fault.Aborted, err, "repository")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.NoSpace, err, "repository")
	case errors.Is(err, unix.EROFS), errors.Is(err, vfs.ErrNoAnswer), errors.Is(err, repository.ErrAway):
		return fault.Wrap(fault.Unavailable, err, "repository")
	default:
		return err
	}
}

// machineFault gives an error of the driver its class.
func machineFault(err error) error {
	switch {
	case errors.Is(err, vmm.ErrNoSpace):
		return fault.Wrap(fault.NoSpace, err, "")
	case errors.Is(err, vmm.ErrUnsupported), errors.Is(err, vmm.ErrUnfitMemory), errors.Is(err, vmm.ErrForeign), errors.Is(err, vmm.ErrUnsavable):
		return fault.Wrap(fault.Invalid, err, "")
	case errors.Is(err, vmm.ErrDisk):
		return fault.Wrap(fault.Unavailable, err, "")
	case errors.Is(err, vmm.ErrCorrupt), errors.Is(err, vmm.ErrStateSize):
		return fault.Wrap(fault.Corrupt, err, "")
	case errors.Is(err, vmm.ErrIncompatible):
		return fault.Wrap(fault.Mismatch, err, "")
	default:
		return err
	}
}
