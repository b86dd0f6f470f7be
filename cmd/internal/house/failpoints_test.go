package house

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fermata/protocol/failpoint"
)

// TestFailpoints sees that each point of PROTOCOL.md is one of the code, and that
// the code that it is named after injects it: a point that nothing reaches proves
// nothing.
func TestFailpoints(t *testing.T) {
	constants := map[string]failpoint.Point{}
	source, err := os.ReadFile("../../../protocol/failpoint/point.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s(\w+)\s+Point = "([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		constants[m[1]] = failpoint.Point(m[2])
	}
	doc, err := os.ReadFile("../../../protocol/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	uses := map[string]string{}
	for _, dir := range []string{"coordinator", "nodeagent"} {
		uses[dir] = sourceBelow(t, filepath.Join("../../..", dir))
	}
	if len(constants) != len(failpoint.Points()) {
		t.Errorf("%d constants, %d points", len(constants), len(failpoint.Points()))
	}
	for name, p := range constants {
		if !strings.Contains(string(doc), "| `"+string(p)+"` |") {
			t.Errorf("%s is not in PROTOCOL.md", p)
		}
		dir, _, _ := strings.Cut(string(p), "/")
		if !strings.Contains(uses[dir], "failpoint."+name) {
			t.Errorf("%s: nothing in %s injects failpoint.%s", p, dir, name)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:coordinator|nodeagent)/[a-z-]+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		if !strings.Contains(string(source), `"`+m[1]+`"`) {
			t.Errorf("PROTOCOL.md names %s, which the code does not know", m[1])
		}
	}
}

// sourceBelow returns all Go code below dir but tests.
func sourceBelow(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
