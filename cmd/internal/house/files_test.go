package house

import (
	"bytes"
	"go/ast"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUnsafe_OnlyInFilesThatSaySo(t *testing.T) {
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_unsafe.go") || strings.HasSuffix(name, "_unsafe_test.go") {
			continue
		}
		f := parse(t, filepath.Join(root(t), name))
		if ast.IsGenerated(f) {
			continue
		}
		for _, i := range f.Imports {
			if i.Path.Value == `"unsafe"` {
				t.Errorf("%s imports unsafe\n\twhy: what the compiler cannot check must be found by its file name\n\tinstead: move that code to a file named *_unsafe.go, each use with why it is needed and why it is safe", name)
			}
		}
	}
}

func TestPackages_HaveOneComment(t *testing.T) {
	for _, p := range packages(t) {
		var commented []string
		generated := true
		for _, path := range p.sources() {
			f := parse(t, path)
			if ast.IsGenerated(f) {
				continue
			}
			generated = false
			if f.Doc != nil {
				commented = append(commented, filepath.Base(path))
			}
		}
		if generated { // or nothing but tests
			continue
		}
		if len(commented) != 1 {
			t.Errorf("%s has %d package comments %v, want one\n\twhy: it is where a reader learns what the package owns and refuses to do\n\tinstead: write it in the file of the main type, or in doc.go when longer than a screen",
				p.ImportPath, len(commented), commented)
		}
	}
}

func TestNames_SayWhatIsInside(t *testing.T) {
	const instead = "put each thing where its noun lives"
	packageNames := []string{"util", "utils", "helper", "helpers", "common", "base", "types", "consts", "constants", "misc", "shared", "core", "manager", "handler", "service"}
	fileNames := []string{"util.go", "utils.go", "helper.go", "helpers.go", "common.go", "misc.go", "types.go", "interfaces.go", "consts.go"}
	for _, p := range packages(t) {
		if slices.Contains(packageNames, p.Name) || slices.Contains(packageNames, filepath.Base(p.ImportPath)) {
			t.Errorf("%s: a package of this name has no subject and collects everything\n\tinstead: %s", p.ImportPath, instead)
		}
	}
	for _, name := range files(t) {
		if slices.Contains(fileNames, filepath.Base(name)) {
			t.Errorf("%s: a file of this name has no subject and collects everything\n\tinstead: name it after its main type or phase; %s", name, instead)
		}
	}
}

// TestFiles_NoMachinePaths finds paths that exist on one machine only.
func TestFiles_NoMachinePaths(t *testing.T) {
	// Put together here, or this file would name them.
	paths := []string{"/wo" + "rk/", "/tm" + "p/w/", "/ro" + "ot/go/"}
	for _, name := range files(t) {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(data, 0) >= 0 {
			continue // no text
		}
		for i, line := range bytes.Split(data, []byte("\n")) {
			for _, path := range paths {
				if bytes.Contains(line, []byte(path)) {
					t.Errorf("%s:%d names %s\n\twhy: that place is on one machine only\n\tinstead: make it relative, a flag, or t.TempDir()", name, i+1, path)
				}
			}
		}
	}
}

// TestEntryPoint_IsMakeTest keeps one way to set up and run everything.
func TestEntryPoint_IsMakeTest(t *testing.T) {
	for _, name := range []string{"README.md", ".ci/run"} {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) && name == "README.md" {
			continue // a tree without a README has no wrong one
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte("make test")) {
			t.Errorf("%s does not say \"make test\"\n\twhy: people and machines must set up and test in the same way\n\tinstead: call or name that target there", name)
		}
	}
}
