package qemu

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"fermata/vmm/qcow2"
)

// MaxBacking is how many images may lie below a disk's own.
const MaxBacking = 16

// layer is one image file of a disk: the disk's own, or one below it.
//
// QEMU gets every layer as a descriptor, and is told which one lies below which. So
// it follows no path that an image names, opens the very file that was checked, and
// needs no permission to reach it.
type layer struct {
	Image
	readOnly bool
	quota    uint64 // 0: none
}

// layers returns the image files of d from the top down.
func (d Disk) layers() []layer {
	out := []layer{{Image{d.Path, d.Format, d.Backing, d.File}, d.ReadOnly, d.QuotaBytes}}
	for b := d.Backing; b != nil; b = b.Backing {
		out = append(out, layer{*b, true, 0})
	}
	return out
}

// firstLayerFD is the number in QEMU of the first layer's descriptor; they follow
// those of the cards and ports. QEMU moves each to the descriptor set of the same number.
func (c Config) firstLayerFD() int { return c.portFD(len(c.ports())) }

func (c Config) diskArguments() []string {
	var args []string
	fd := c.firstLayerFD()
	for i, d := range c.Disks {
		layers := d.layers()
		var node map[string]any // of the layer below; nil says that there is none
		for j := len(layers) - 1; j >= 0; j-- {
			node = layers[j].blockdev(fd+j, node)
		}
		for range layers {
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd))
			fd++
		}
		node["node-name"] = blockNode(i)
		args = append(args, "-blockdev", jsonArgument(node))
	}
	return args
}

// blockdev describes a layer in the words of QEMU's BlockdevOptions. An explicit
// backing, null included, replaces the one that the image's header names.
func (l layer) blockdev(fd int, backing map[string]any) map[string]any {
	file := map[string]any{
		"driver":    "file",
		"filename":  fmt.Sprintf("/dev/fdset/%d", fd),
		"read-only": l.readOnly,
	}
	if l.quota != 0 {
		// A raw layer of a given size answers ENOSPC to a write behind it
		// (raw_adjust_offset in block/raw-format.c).
		file = map[string]any{"driver": "raw", "size": l.quota, "read-only": l.readOnly, "file": file}
	}
	node := map[string]any{
		"driver":    string(l.Format),
		"read-only": l.readOnly,
		"file":      file,
	}
	if !l.readOnly {
		node["discard"] = "unmap"
		for f := file; f != nil; f, _ = f["file"].(map[string]any) {
			f["discard"] = "unmap"
		}
	}
	if l.Format == QCOW2 {
		node["backing"] = backing
	}
	return node
}

// openLayers opens the layers that the caller has not opened, and checks all of
// them. files are in the order of the descriptors, opened are those to be closed.
func (c Config) openLayers() (files, opened []*os.File, err error) {
	for _, d := range c.Disks {
		for _, l := range d.layers() {
			f := l.File
			if f == nil {
				if f, err = l.open(); err != nil {
					return nil, opened, fmt.Errorf("disk %s: %w", d.Name, err)
				}
				opened = append(opened, f)
			}
			if err := l.check(f); err != nil {
				return nil, opened, fmt.Errorf("disk %s: image %s: %w", d.Name, l.Path, err)
			}
			files = append(files, f)
		}
	}
	return files, opened, nil
}

func (l layer) open() (*os.File, error) {
	mode := os.O_RDWR
	if l.readOnly {
		mode = os.O_RDONLY
	}
	// A pipe must not make us wait for its other end.
	return os.OpenFile(l.Path, mode|unix.O_NONBLOCK, 0)
}

// check refuses an image that depends on files other than the layers that are given.
func (l layer) check(f *os.File) error {
	if l.Format != QCOW2 {
		return nil
	}
	h, err := qcow2.Read(f)
	if err == nil {
		err = h.Check()
	}
	switch {
	case err != nil:
		return err
	case h.Backing != "" && l.Backing == nil:
		return fmt.Errorf("%w: it lies on %q, which the configuration does not name", qcow2.ErrRefused, h.Backing)
	case h.Backing == "" && l.Backing != nil:
		return fmt.Errorf("%w: it does not lie on %s, as the configuration says", qcow2.ErrRefused, l.Backing.Path)
	}
	return nil
}
