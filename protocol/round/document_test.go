package round_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fermata/protocol/round"
)

// TestProtocolDocument keeps PROTOCOL.md, the code and the wire together.
func TestProtocolDocument(t *testing.T) {
	doc := read(t, "../PROTOCOL.md")
	for _, s := range round.Steps() {
		if !strings.Contains(doc, fmt.Sprintf("| `%s` |", s)) {
			t.Errorf("step %q is not in the table of steps", s)
		}
	}
	for i := 1; i <= 14; i++ {
		if !strings.Contains(doc, fmt.Sprintf("- **I%d** ", i)) {
			t.Errorf("invariant I%d is not listed", i)
		}
	}
	proto := read(t, "../api/fermata.proto")
	for c := round.CallPrepare; c <= round.CallFinish; c++ {
		rpc := c.String() + "Round"
		if !strings.Contains(doc, "| `"+rpc+"` |") || !strings.Contains(proto, "rpc "+rpc+"(") {
			t.Errorf("call %s: %s is not both in the document and on the wire", c, rpc)
		}
	}
	for _, err := range []string{"ErrFenced", "ErrStaleEpoch", "ErrBusy", "ErrOutOfOrder", "ErrContradiction", "ErrNotMember", "ErrInvalid"} {
		if !strings.Contains(doc, "`"+err+"`") {
			t.Errorf("%s is not in the document", err)
		}
	}
}

// TestProtocolDocument_Stories sees that each row of the failure table has its
// story and each story its row.
func TestProtocolDocument_Stories(t *testing.T) {
	_, table, ok := strings.Cut(read(t, "../PROTOCOL.md"), "## 10.")
	if !ok {
		t.Fatal("no section 10")
	}
	table, _, _ = strings.Cut(table, "## 11.")
	told := make(map[string]bool)
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(table, -1) {
		told[m[1]] = true
		if _, err := os.Stat(filepath.Join("testdata", m[1]+".txt")); err != nil {
			t.Error(err)
		}
	}
	stories, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stories {
		if name := strings.TrimSuffix(filepath.Base(path), ".txt"); !told[name] {
			t.Errorf("story %s is not in the failure table", name)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
