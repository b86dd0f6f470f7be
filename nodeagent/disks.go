package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/capture"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qcow2"
	"fermata/vmm/qemu"
)

// placeDisks opens the images of the guest's disks, and makes or restores the
// overlays. The caller closes the files of what it returns, also after an error.
func (m *maker) placeDisks(ctx context.Context) (disks []qemu.Disk, err error) {
	for _, spec := range m.guest.spec.Disks {
		d, err := m.placeDisk(ctx, spec)
		disks = append(disks, d)
		if err != nil {
			return disks, fmt.Errorf("disk %s: %w", spec.Name, err)
		}
	}
	return disks, nil
}

// diskOf translates a disk for the driver, all but its images.
func diskOf(g *guest, spec *api.DiskSpec) qemu.Disk {
	d := qemu.Disk{
		Name: spec.Name, Path: spec.Path, Format: qemu.DiskFormat(spec.Format), ReadOnly: spec.ReadOnly,
		WriteError: qemu.OnError(spec.Werror), ReadError: qemu.OnError(spec.Rerror), QuotaBytes: spec.QuotaBytes,
	}
	if !d.ReadOnly {
		d.Path, d.Format = overlayPath(g.dir, spec.Name), qemu.QCOW2
	}
	return d
}

func (m *maker) placeDisk(ctx context.Context, spec *api.DiskSpec) (qemu.Disk, error) {
	base, err := openChain(m.agent.paths, spec.Path, qemu.DiskFormat(spec.Format))
	if err == nil {
		err = m.agent.checkBases(ctx, m.image, spec.Name, base)
	}
	if err != nil {
		return qemu.Disk{Backing: base}, err
	}
	d := diskOf(m.guest, spec)
	if spec.ReadOnly {
		d.Backing, d.File = base.Backing, base.File
		return d, nil
	}
	d.Backing = base
	if m.image == nil {
		err = createOverlay(ctx, d.Path, spec, base)
	} else {
		err = m.restoreOverlay(ctx, d.Path, spec)
	}
	if err != nil {
		return d, err
	}
	if d.File, err = os.OpenFile(d.Path, os.O_RDWR|unix.O_NOFOLLOW, 0); err != nil {
		return d, err
	}
	return d, limitOverlay(d)
}

// limitOverlay gives an overlay the size of its quota, with a hole up to there.
func limitOverlay(d qemu.Disk) error {
	if d.QuotaBytes == 0 {
		return nil
	}
	fi, err := d.File.Stat()
	if err != nil {
		return err
	}
	if uint64(fi.Size()) > d.QuotaBytes {
		return fault.New(fault.Invalid, "its overlay takes %d bytes, more than its quota of %d", fi.Size(), d.QuotaBytes)
	}
	if err := d.File.Truncate(int64(d.QuotaBytes)); err != nil {
		return fmt.Errorf("give the overlay the size of its quota: %w", err)
	}
	return nil
}

// closeDisks closes the files of disks: QEMU has its own copies.
func closeDisks(disks []qemu.Disk) error {
	var errs []error
	closeFile := func(f *os.File) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, d := range disks {
		closeFile(d.File)
		for b := d.Backing; b != nil; b = b.Backing {
			closeFile(b.File)
		}
	}
	return errors.Join(errs...)
}

// openChain opens the image at path and those below it. A specification names the
// first, images name the others: each must be allowed, and its format known, for a
// format that is guessed from the content is chosen by whoever wrote that. On error
// the images that were opened are returned, too.
func openChain(rules pathRules, path string, format qemu.DiskFormat) (*qemu.Image, error) {
	var top *qemu.Image
	next := &top
	for depth := 0; ; depth++ {
		if depth > qemu.MaxBacking {
			return top, fault.New(fault.Invalid, "%s: more than %d images lie on each other", path, qemu.MaxBacking)
		}
		f, err := rules.open(path)
		if err != nil {
			return top, err
		}
		image := &qemu.Image{Path: path, Format: format, File: f}
		*next, next = image, &image.Backing
		if format != qemu.QCOW2 {
			return top, nil
		}
		h, err := readHeader(f)
		if err != nil {
			return top, fault.Wrap(fault.Invalid, err, "%s", path)
		}
		if h.Backing == "" {
			return top, nil
		}
		if format = qemu.DiskFormat(h.BackingFormat); format != qemu.Raw && format != qemu.QCOW2 {
			return top, fault.New(fault.Invalid, "%s lies on %s of format %q, want raw or qcow2; write the format into it with: qemu-img rebase -u -F FORMAT -b %s %s",
				path, h.Backing, h.BackingFormat, h.Backing, path)
		}
		if path, err = below(path, h.Backing); err != nil {
			return top, err
		}
	}
}

// below returns the path of the file that the image at path names as the one below.
func below(path, name string) (string, error) {
	if filepath.IsAbs(name) {
		return filepath.Clean(name), nil
	}
	// QEMU takes a colon before the first slash as the end of a protocol's name
	// (path_has_protocol in block.c).
	if first, _, _ := strings.Cut(name, "/"); strings.Contains(first, ":") {
		return "", fault.New(fault.Invalid, "%s lies on %s, which is not a file", path, name)
	}
	return filepath.Join(filepath.Dir(path), name), nil
}

func readHeader(r io.ReaderAt) (qcow2.Header, error) {
	h, err := qcow2.Read(r)
	if err == nil {
		err = h.Check()
	}
	return h, err
}

// createOverlay makes the copy-on-write file that takes a guest's writes to a
// disk, so that the base image is never written.
func createOverlay(ctx context.Context, path string, spec *api.DiskSpec, base *qemu.Image) error {
	size, err := imageSize(base)
	if err != nil {
		return err
	}
	// -u: qemu-img need not open the base, and so follows no path in it.
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", spec.Format, "-b", spec.Path, path, strconv.FormatUint(size, 10))
	if out, err := cmd.CombinedOutput(); err != nil {
		class := fault.Invalid
		if strings.Contains(string(out), unix.ENOSPC.Error()) { // all that a tool can tell
			class = fault.NoSpace
		}
		return fault.Wrap(class, err, "create overlay: %s", strings.TrimSpace(string(out)))
	}
	return nil
}

// overlaySize is how much of an overlay with a quota has to be kept: it has its size from
// the beginning, most of it a hole, which restoring it makes again.
func overlaySize(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	data, err := capture.Data(f, 0, fi.Size())
	if err != nil {
		return 0, err
	}
	var end int64
	for e := range data.All() {
		end = max(end, e.End())
	}
	return uint64(min(end, fi.Size())), nil
}

// imageSize returns the size of the disk in an image, in bytes.
func imageSize(base *qemu.Image) (uint64, error) {
	if base.Format == qemu.QCOW2 {
		h, err := readHeader(base.File)
		return h.Size, err
	}
	fi, err := base.File.Stat()
	if err != nil {
		return 0, err
	}
	return uint64(fi.Size()), nil
}

// restoreOverlay brings an overlay back from the repository. It was written by a
// QEMU of ours and passed through other hands since, so nothing in its header is
// believed.
func (m *maker) restoreOverlay(ctx context.Context, path string, spec *api.DiskSpec) error {
	obj := findObject(m.image, kindDisk, spec.Name)
	if obj == nil {
		return fault.New(fault.Corrupt, "the image of guest %s lacks it", m.guest.spec.Name)
	}
	if err := m.readFile(ctx, obj, path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "overlay in the checkpoint")
	}
	if h.Backing != spec.Path || h.BackingFormat != spec.Format {
		return fault.New(fault.Corrupt, "the overlay in the checkpoint lies on %q (%s), but the specification names %s (%s)",
			h.Backing, h.BackingFormat, spec.Path, spec.Format)
	}
	return nil
}
