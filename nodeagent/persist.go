package nodeagent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
)

// persist stores what the pause took and returns once it is durable. The guests
// run. progress gets bytes looked at, of all bytes; it may be called by several
// goroutines at once.
func (s *saving) persist(ctx context.Context, progress func(done, total uint64)) (*api.NodeImage, error) {
	if err := failpoint.Inject(ctx, failpoint.AgentBeforePersist); err != nil {
		return nil, err
	}
	s.agent.pacer.letCatchUp(s.urgent)
	meter := newMeter(s.rawBytes(), progress)
	image := &api.NodeImage{Node: s.agent.cfg.Name, QemuVersion: s.agent.qemu.Version.String()}
	if err := s.sweepMemory(ctx, meter); err != nil {
		return nil, err
	}
	// One guest after the other: PutImage uses all processors by itself, and
	// copies are freed as early as can be.
	for _, sg := range s.guests {
		gi, err := s.persistGuest(ctx, sg, meter)
		if err != nil {
			return nil, fmt.Errorf("persist: guest %s: %w", sg.spec.Name, err)
		}
		image.Guests = append(image.Guests, gi)
		image.Reports = append(image.Reports, sg.report)
	}
	result, err := s.writer.Finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("persist: make packs durable: %w", repositoryFault(err))
	}
	image.Packs = result.Packs
	image.StoredBytes = result.StoredBytes
	image.NewUniqueBytes = result.NewUniqueBytes
	return image, failpoint.Inject(ctx, failpoint.AgentAfterPersist)
}

func (s *saving) persistGuest(ctx context.Context, sg *savedGuest, meter *meter) (*api.GuestImage, error) {
	description, err := sg.machine.Describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("describe machine: %w", err)
	}
	sg.report.BypassDropped = bypassDropped(sg.guest) - sg.dropped
	gi := &api.GuestImage{Guest: sg.spec.Name, Confidential: rangesOf(sg.registered)}
	if gi.Files, err = s.agent.baseFiles(ctx, sg.guest); err != nil {
		return nil, err
	}
	if gi.Machine, err = json.Marshal(description); err != nil {
		return nil, fmt.Errorf("encode machine description: %w", err)
	}
	for _, p := range sg.pieces {
		if p.stored == nil {
			opt := repository.PutOptions{Progress: meter.piece(), Turn: s.yielding(s.urgent)}
			if err := s.store(ctx, p, p.copy, p.copy.Size(), p.copy.Data(), opt); err != nil {
				return nil, err
			}
			if err := p.copy.Close(); err != nil {
				return nil, err
			}
			p.copy = nil
		}
		gi.Objects = append(gi.Objects, p.stored)
		sg.report.RawBytes += uint64(p.stats.RawBytes)
		sg.report.NonZeroBytes += uint64(p.stats.NonZeroBytes)
	}
	devices, err := s.putBytes(ctx, kindDevices, kindDevices, sg.devices)
	if err != nil {
		return nil, err
	}
	gi.Objects = append(gi.Objects, devices)
	for _, r := range sg.frames {
		obj, err := s.putBytes(ctx, kindChannel, r.nic, fabric.EncodeFrames(r.frames))
		if err != nil {
			return nil, err
		}
		obj.Count = uint64(len(r.frames))
		gi.Objects = append(gi.Objects, obj)
	}
	for _, f := range []struct{ name, path string }{{bootKernel, sg.boot.Kernel}, {bootInitrd, sg.boot.Initrd}} {
		if f.path == "" {
			continue
		}
		obj, err := s.putFile(ctx, kindBootFile, f.name, f.path)
		if err != nil {
			return nil, err
		}
		gi.Objects = append(gi.Objects, obj)
	}
	return gi, nil
}

func (s *saving) putBytes(ctx context.Context, kind, name string, b []byte) (*api.ImageObject, error) {
	ref, err := s.writer.PutBytes(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("store %s %s: %w", kind, name, repositoryFault(err))
	}
	return objectOf(kind, name, ref), nil
}

// putFile stores a boot file, so that a restart needs nothing but the repository.
func (s *saving) putFile(ctx context.Context, kind, name, path string) (*api.ImageObject, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", name, err)
	}
	img, err := s.writer.PutImage(ctx, f, fi.Size(), repository.PutOptions{Turn: s.yielding(s.urgent)})
	if err != nil {
		return nil, fmt.Errorf("store %s %s: %w", kind, name, repositoryFault(err))
	}
	return objectOf(kind, name, img.Ref), nil
}

// urgent tells whether a guest waits for its sweep.
func (s *saving) urgent() bool {
	return slices.ContainsFunc(s.guests, func(sg *savedGuest) bool { return sg.cut != nil && sg.cut.Urgent() })
}

// yielding has work that guests run beside step back for them, but not while there is
// hurry.
func (s *saving) yielding(hurry func() bool) capture.Turn {
	return func(work func() error) error { return s.agent.pacer.do(hurry, work) }
}

// rawBytes is what persist will look at.
func (s *saving) rawBytes() uint64 {
	var n uint64
	for _, sg := range s.guests {
		for _, p := range sg.pieces {
			if p.copy != nil {
				n += uint64(p.copy.Size())
			}
		}
		if sg.cut != nil {
			for _, mem := range sg.machine.Memory() {
				n += mem.Size
			}
		}
	}
	return n
}
