package nodeagent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// identify describes by their content all images that the guest's disks lie on, top ones
// first. Images that nobody has read before are read.
func (a *Agent) identify(ctx context.Context, spec *api.GuestSpec) ([]*api.BaseFile, error) {
	var files []*api.BaseFile
	for _, d := range spec.Disks {
		chain, err := openChain(a.paths, d.Path, qemu.DiskFormat(d.Format))
		if err == nil {
			var of []*api.BaseFile
			of, err = a.identifyChain(ctx, d.Name, chain)
			files = append(files, of...)
		}
		if err := errors.Join(err, closeDisks([]qemu.Disk{{Backing: chain}})); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return files, nil
}

func (a *Agent) identifyChain(ctx context.Context, disk string, chain *qemu.Image) ([]*api.BaseFile, error) {
	var files []*api.BaseFile
	for b := chain; b != nil; b = b.Backing {
		d, err := a.digests.of(ctx, b.File)
		if err != nil {
			return nil, fmt.Errorf("identify %s: %w", b.Path, err)
		}
		sum, err := hex.DecodeString(d.SHA256)
		if err != nil {
			return nil, fmt.Errorf("identify %s: %w", b.Path, err)
		}
		files = append(files, &api.BaseFile{Disk: disk, Path: b.Path, SizeBytes: uint64(d.Size), ModifiedUnixNs: d.ModifiedNS, Sha256: sum})
	}
	return files, nil
}

// identifyLater has the images below the guest's disks read before its first checkpoint needs
// to know them.
func (a *Agent) identifyLater(g *guest) {
	if len(g.spec.GetDisks()) == 0 {
		return
	}
	select {
	case a.unidentified <- g:
	default: // its first checkpoint reads them
	}
}

// identifyGuests reads images until ctx ends.
func (a *Agent) identifyGuests(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case g := <-a.unidentified:
			_, err := a.baseFiles(ctx, g)
			if _, gone := a.findGuest(g.cluster, g.spec.Name); err != nil && gone == nil && ctx.Err() == nil {
				a.log.Warn("images below a guest's disks cannot be identified yet", "cluster", g.cluster, "guest", g.spec.Name, "error", err)
			}
		}
	}
}

// baseFiles describes the images below the guest's disks, which must hold what they held when
// the guest was made, as far as that is known: its overlays make sense on nothing else.
func (a *Agent) baseFiles(ctx context.Context, g *guest) ([]*api.BaseFile, error) {
	if len(g.spec.GetDisks()) == 0 {
		return nil, nil
	}
	now, err := a.identify(ctx, g.spec)
	if err != nil {
		return nil, err
	}
	g.bases.Lock()
	defer g.bases.Unlock()
	if g.bases.files != nil {
		if err := sameBases(g.bases.files, now, "when the guest was made"); err != nil {
			return nil, err
		}
		return now, nil
	}
	err = a.journal.UpdateGuest(g.cluster, g.spec.Name, func(rec *journal.Guest) { rec.Bases = encodeBases(now) })
	if err != nil {
		return nil, err
	}
	g.bases.files = now
	return now, nil
}

// checkBases refuses images of a disk that are not those of the checkpoint. A checkpoint
// that names none was taken before checkpoints did.
func (a *Agent) checkBases(ctx context.Context, image *api.GuestImage, disk string, chain *qemu.Image) error {
	var then []*api.BaseFile
	for _, f := range image.GetFiles() {
		if f.GetDisk() == disk {
			then = append(then, f)
		}
	}
	if len(then) == 0 {
		return nil
	}
	// What differs in size need not be read.
	if err := sameSizes(then, chain); err != nil {
		return err
	}
	now, err := a.identifyChain(ctx, disk, chain)
	if err != nil {
		return err
	}
	return sameBases(then, now, "when the checkpoint was taken")
}

func sameSizes(then []*api.BaseFile, chain *qemu.Image) error {
	for _, was := range then {
		if chain == nil {
			return fault.New(fault.Mismatch, "the images below it were more when the checkpoint was taken: %s is missing", was.GetPath())
		}
		fi, err := chain.File.Stat()
		if err != nil {
			return err
		}
		if uint64(fi.Size()) != was.GetSizeBytes() {
			return fault.New(fault.Mismatch, "base image %s has %d bytes, and had %d when the checkpoint was taken (%s); put that file back",
				chain.Path, fi.Size(), was.GetSizeBytes(), describeBase(was))
		}
		chain = chain.Backing
	}
	if chain != nil {
		return fault.New(fault.Mismatch, "base image %s was not below it when the checkpoint was taken", chain.Path)
	}
	return nil
}

// sameBases compares contents; names and times may differ.
func sameBases(then, now []*api.BaseFile, when string) error {
	if len(then) != len(now) {
		return fault.New(fault.Mismatch, "its disks lie on %d base images, and lay on %d %s", len(now), len(then), when)
	}
	for i, is := range now {
		was := then[i]
		if is.GetSizeBytes() != was.GetSizeBytes() || string(is.GetSha256()) != string(was.GetSha256()) {
			return fault.New(fault.Mismatch, "base image %s of disk %s does not hold what it held %s (now %s; then %s); put that file back",
				is.GetPath(), is.GetDisk(), when, describeBase(is), describeBase(was))
		}
	}
	return nil
}

func describeBase(f *api.BaseFile) string {
	return fmt.Sprintf("%d bytes, SHA-256 %x, modified %s", f.GetSizeBytes(), f.GetSha256(), clock(time.Unix(0, f.GetModifiedUnixNs())))
}

func encodeBases(files []*api.BaseFile) []journal.Base {
	out := make([]journal.Base, 0, len(files))
	for _, f := range files {
		out = append(out, journal.Base{Disk: f.Disk, Path: f.Path, Size: f.SizeBytes, ModifiedNS: f.ModifiedUnixNs, SHA256: f.Sha256})
	}
	return out
}

func decodeBases(bases []journal.Base) []*api.BaseFile {
	if bases == nil {
		return nil
	}
	out := make([]*api.BaseFile, 0, len(bases))
	for _, b := range bases {
		out = append(out, &api.BaseFile{Disk: b.Disk, Path: b.Path, SizeBytes: b.Size, ModifiedUnixNs: b.ModifiedNS, Sha256: b.SHA256})
	}
	return out
}
