package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// Kinds of image objects, as the manifest names them.
const (
	kindMemory   = "memory"
	kindDisk     = "disk"
	kindDevices  = "devices"
	kindBootFile = "boot-file"
	kindChannel  = "channel"
)

// Names of boot-file objects.
const (
	bootKernel = "kernel"
	bootInitrd = "initrd"
)

// placeFiles puts the guest's boot files and disk overlays where QEMU will look
// for them: from the image when there is one, else from the specification.
func (m *maker) placeFiles(ctx context.Context) ([]qemu.Disk, error) {
	g := m.guest
	for _, f := range []struct {
		name, source string
		path         *string
	}{{bootKernel, g.spec.Kernel, &g.boot.Kernel}, {bootInitrd, g.spec.Initrd, &g.boot.Initrd}} {
		target := filepath.Join(g.dir, f.name)
		switch obj := findObject(m.image, kindBootFile, f.name); {
		case obj != nil:
			if err := m.readFile(ctx, obj, target); err != nil {
				return nil, err
			}
		case m.image == nil && f.source != "":
			// A copy of its own, so that the checkpoint holds what this guest was
			// booted from even after the node's files have changed.
			if err := copyFile(f.source, target); err != nil {
				return nil, fmt.Errorf("copy %s: %w", f.name, err)
			}
		default:
			continue
		}
		*f.path = target
	}
	var disks []qemu.Disk
	for _, d := range g.spec.Disks {
		if d.ReadOnly {
			disks = append(disks, qemu.Disk{Name: d.Name, Path: d.Path, Format: qemu.DiskFormat(d.Format), ReadOnly: true})
			continue
		}
		path := overlayPath(g.dir, d.Name)
		if m.image == nil {
			if err := createOverlay(ctx, path, d); err != nil {
				return nil, err
			}
		} else {
			obj := findObject(m.image, kindDisk, d.Name)
			if obj == nil {
				return nil, fault.New(fault.Corrupt, "image of guest %s lacks disk %s", g.spec.Name, d.Name)
			}
			if err := m.readFile(ctx, obj, path); err != nil {
				return nil, err
			}
		}
		disks = append(disks, qemu.Disk{Name: d.Name, Path: path, Format: qemu.QCOW2})
	}
	return disks, nil
}

// createOverlay makes the copy-on-write file that takes a guest's writes to a
// disk, so that the base image is never written.
func createOverlay(ctx context.Context, path string, d *api.DiskSpec) error {
	if _, err := os.Stat(d.Path); err != nil {
		return fault.Wrap(fault.Invalid, err, "disk %s", d.Name)
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", d.Format, "-b", d.Path, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		class := fault.Invalid
		if strings.Contains(string(out), unix.ENOSPC.Error()) { // all that a tool can tell
			class = fault.NoSpace
		}
		return fault.Wrap(class, err, "create overlay of disk %s: %s", d.Name, strings.TrimSpace(string(out)))
	}
	return nil
}

// readFile restores one object into a new file.
func (m *maker) readFile(ctx context.Context, obj *api.ImageObject, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", obj.Name, err)
	}
	defer f.Close()
	if err := f.Truncate(int64(obj.SizeBytes)); err != nil {
		return fmt.Errorf("size %s: %w", obj.Name, err)
	}
	if err := m.readObject(ctx, obj, f); err != nil {
		return err
	}
	return f.Close()
}

// copyFile copies an ordinary file that the specification names.
func copyFile(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "")
	}
	if !fi.Mode().IsRegular() {
		return fault.New(fault.Invalid, "%s is not a regular file", from)
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func findObject(image *api.GuestImage, kind, name string) *api.ImageObject {
	for _, o := range image.GetObjects() {
		if o.Kind == kind && o.Name == name {
			return o
		}
	}
	return nil
}
