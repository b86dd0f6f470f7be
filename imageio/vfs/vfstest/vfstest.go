// Package vfstest is the contract suite of vfs.FS. An implementation that
// passes it may stand in for any other.
package vfstest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"fermata/imageio/vfs"
)

// Run checks one implementation. open returns a file system and an existing
// empty directory in it, fresh for each call.
func Run(t *testing.T, open func(t *testing.T) (vfs.FS, string)) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, fsys vfs.FS, dir string)
	}{
		{"CreateWriteRead", testCreateWriteRead},
		{"CreateIsExclusive", testCreateIsExclusive},
		{"MissingNames", testMissingNames},
		{"LinkIsExclusive", testLinkIsExclusive},
		{"LinkHasOneWinner", testLinkHasOneWinner},
		{"LinkSurvivesRemoval", testLinkSurvivesRemoval},
		{"RenameReplaces", testRenameReplaces},
		{"OneDirectoryOnly", testOneDirectoryOnly},
		{"RemoveWhileOpen", testRemoveWhileOpen},
		{"Directories", testDirectories},
		{"ListIsSorted", testListIsSorted},
		{"ReadAt", testReadAt},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys, dir := open(t)
			c.test(t, fsys, dir)
		})
	}
}

func testCreateWriteRead(t *testing.T, fsys vfs.FS, dir string) {
	name := filepath.Join(dir, "a")
	f, err := fsys.Create(name)
	must(t, err)
	for _, part := range []string{"one", "two"} {
		n, err := f.Write([]byte(part))
		must(t, err)
		if n != len(part) {
			t.Fatalf("wrote %d bytes of %d", n, len(part))
		}
	}
	must(t, f.Sync())
	must(t, f.Close())
	must(t, fsys.SyncDir(dir))
	wantContents(t, fsys, name, "onetwo")
	info, err := fsys.Stat(name)
	must(t, err)
	if info.Size != 6 || info.IsDir {
		t.Fatalf("stat: %+v", info)
	}
}

func testCreateIsExclusive(t *testing.T, fsys vfs.FS, dir string) {
	name := filepath.Join(dir, "a")
	write(t, fsys, name, "x")
	if _, err := fsys.Create(name); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("create over a file: %v", err)
	}
	wantContents(t, fsys, name, "x")
}

func testMissingNames(t *testing.T, fsys vfs.FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	_, openErr := fsys.Open(a)
	_, statErr := fsys.Stat(a)
	_, listErr := fsys.List(a)
	_, createErr := fsys.Create(filepath.Join(a, "x"))
	for op, err := range map[string]error{
		"open": openErr, "stat": statErr, "list": listErr, "create": createErr,
		"remove": fsys.Remove(a), "rename": fsys.Rename(a, b), "link": fsys.Link(a, b),
		"mkdir": fsys.Mkdir(filepath.Join(a, "x")), "syncdir": fsys.SyncDir(a),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a missing name: %v", op, err)
		}
	}
}

func testLinkIsExclusive(t *testing.T, fsys vfs.FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, fsys, a, "new")
	write(t, fsys, b, "old")
	if err := fsys.Link(a, b); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("link over a file: %v", err)
	}
	wantContents(t, fsys, b, "old")
}

func testLinkHasOneWinner(t *testing.T, fsys vfs.FS, dir string) {
	const racers = 8
	target := filepath.Join(dir, "target")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []string
	for i := range racers {
		own := filepath.Join(dir, "own"+string(rune('0'+i)))
		write(t, fsys, own, own)
		wg.Go(func() {
			if fsys.Link(own, target) == nil {
				mu.Lock()
				defer mu.Unlock()
				winners = append(winners, own)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("winners: %q", winners)
	}
	wantContents(t, fsys, target, winners[0])
}

func testLinkSurvivesRemoval(t *testing.T, fsys vfs.FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, fsys, a, "x")
	must(t, fsys.Link(a, b))
	must(t, fsys.Remove(a))
	wantContents(t, fsys, b, "x")
}

func testRenameReplaces(t *testing.T, fsys vfs.FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, fsys, a, "new")
	write(t, fsys, b, "old")
	must(t, fsys.Rename(a, b))
	wantContents(t, fsys, b, "new")
	wantNames(t, fsys, dir, "b")
}

func testOneDirectoryOnly(t *testing.T, fsys vfs.FS, dir string) {
	sub := filepath.Join(dir, "sub")
	must(t, fsys.Mkdir(sub))
	a := filepath.Join(dir, "a")
	write(t, fsys, a, "x")
	if fsys.Rename(a, filepath.Join(sub, "a")) == nil || fsys.Link(a, filepath.Join(sub, "a")) == nil {
		t.Fatal("a name left its directory")
	}
}

func testRemoveWhileOpen(t *testing.T, fsys vfs.FS, dir string) {
	name := filepath.Join(dir, "a")
	write(t, fsys, name, "still here")
	f, err := fsys.Open(name)
	must(t, err)
	must(t, fsys.Remove(name))
	got := make([]byte, 10)
	if _, err := f.ReadAt(got, 0); err != nil && err != io.EOF || string(got) != "still here" {
		t.Fatalf("read %q, %v", got, err)
	}
	must(t, f.Close())
}

func testDirectories(t *testing.T, fsys vfs.FS, dir string) {
	sub := filepath.Join(dir, "sub")
	must(t, fsys.Mkdir(sub))
	must(t, fsys.SyncDir(dir))
	if err := fsys.Mkdir(sub); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("mkdir twice: %v", err)
	}
	info, err := fsys.Stat(sub)
	must(t, err)
	if !info.IsDir {
		t.Fatal("stat does not say directory")
	}
	if fsys.Remove(sub) == nil {
		t.Fatal("remove took a directory")
	}
}

func testListIsSorted(t *testing.T, fsys vfs.FS, dir string) {
	for _, n := range []string{"c", "a", "b"} {
		write(t, fsys, filepath.Join(dir, n), n)
	}
	must(t, fsys.Mkdir(filepath.Join(dir, "aa")))
	wantNames(t, fsys, dir, "a", "aa", "b", "c")
}

func testReadAt(t *testing.T, fsys vfs.FS, dir string) {
	name := filepath.Join(dir, "a")
	write(t, fsys, name, "0123456789")
	f, err := fsys.Open(name)
	must(t, err)
	defer f.Close()
	got := make([]byte, 4)
	if n, err := f.ReadAt(got, 3); err != nil || n != 4 || !bytes.Equal(got, []byte("3456")) {
		t.Fatalf("read %d %q, %v", n, got, err)
	}
	if n, err := f.ReadAt(got, 8); n != 2 || err != io.EOF {
		t.Fatalf("read over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(got, 99); n != 0 || err != io.EOF {
		t.Fatalf("read behind the end: %d, %v", n, err)
	}
}

func write(t testing.TB, fsys vfs.FS, name, contents string) {
	t.Helper()
	must(t, vfs.WriteFile(fsys, name, []byte(contents)))
}

func wantContents(t testing.TB, fsys vfs.FS, name, want string) {
	t.Helper()
	got, err := vfs.ReadFile(fsys, name, 1<<20)
	must(t, err)
	if string(got) != want {
		t.Fatalf("%s holds %q, want %q", name, got, want)
	}
}

func wantNames(t testing.TB, fsys vfs.FS, dir string, want ...string) {
	t.Helper()
	got, err := fsys.List(dir)
	must(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("%s lists %q, want %q", dir, got, want)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
