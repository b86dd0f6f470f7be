package main

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// node is one file of the image.
type node struct {
	mode fs.FileMode // type and permissions
	data []byte      // content, or target of a symbolic link
	rdev [2]uint32   // major and minor number of a device
}

// tree is the guest's root filesystem by path, without leading slash. Writing it
// gives the same bytes for the same content: sorted, owned by root, dated 0.
type tree map[string]node

// put adds a node and the directories above it.
func (t tree) put(name string, n node) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t[dir] = node{mode: fs.ModeDir | 0o755}
		}
	}
	t[name] = n
}

func (t tree) file(name string, perm fs.FileMode, data []byte) {
	t.put(name, node{mode: perm, data: data})
}

func (t tree) link(name, target string) {
	t.put(name, node{mode: fs.ModeSymlink | 0o777, data: []byte(target)})
}

// names are the paths in the order of the archive: parents before children.
func (t tree) names() []string {
	var names []string
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// writeTo writes the tree as a cpio archive in the "newc" format, the one the
// kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
func (t tree) writeTo(w io.Writer) error {
	for i, name := range t.names() {
		n := t[name]
		if err := writeEntry(w, uint32(i+1), name, n); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", node{})
}

func writeEntry(w io.Writer, inode uint32, name string, n node) error {
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, unixMode(n.mode), 0, 0, 1, 0, len(n.data),
		0, 0, n.rdev[0], n.rdev[1], len(name)+1, 0)
	if _, err := io.WriteString(w, pad4(header+name+"\x00")); err != nil {
		return err
	}
	_, err := io.WriteString(w, pad4(string(n.data)))
	return err
}

// pad4 fills up to a multiple of four bytes with zeros.
func pad4(s string) string { return s + strings.Repeat("\x00", (4-len(s)%4)%4) }

// unixMode is mode as stat(2) has it.
func unixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	switch mode.Type() {
	case fs.ModeDir:
		m |= 0o040000
	case fs.ModeSymlink:
		m |= 0o120000
	case fs.ModeDevice | fs.ModeCharDevice:
		m |= 0o020000
	default:
		if mode != 0 {
			m |= 0o100000
		}
	}
	return m
}
