package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"fermata/protocol/api"
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

// placeFiles puts the guest's boot files where QEMU will look for them: from the
// image when there is one, else from the specification.
func (m *maker) placeFiles(ctx context.Context) error {
	g := m.guest
	for _, f := range []struct {
		name, source string
		path         *string
	}{{bootKernel, g.spec.Kernel, &g.boot.Kernel}, {bootInitrd, g.spec.Initrd, &g.boot.Initrd}} {
		target := filepath.Join(g.dir, f.name)
		switch obj := findObject(m.image, kindBootFile, f.name); {
		case obj != nil:
			if err := m.readFile(ctx, obj, target); err != nil {
				return err
			}
		case m.image == nil && f.source != "":
			// A copy of its own, so that the checkpoint holds what this guest was
			// booted from even after the node's files have changed.
			if err := m.copyFile(f.source, target); err != nil {
				return fmt.Errorf("copy %s: %w", f.name, err)
			}
		default:
			continue
		}
		// QEMU's user reads it, through a descriptor; the directory is root's alone.
		if err := os.Chmod(target, 0o644); err != nil {
			return err
		}
		*f.path = target
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
func (m *maker) copyFile(from, to string) error {
	src, err := m.agent.paths.open(from)
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
