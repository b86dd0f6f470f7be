package guests

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fermata/protocol/mustrun"
)

// TestDirty_FindsADamagedPage runs the memory writer on the host: it must find
// what was damaged, and nothing else.
func TestDirty_FindsADamagedPage(t *testing.T) {
	mustrun.Need(t, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		args    []string
		wantBad bool
	}{
		{"whole", []string{"-m", "4", "-t", "3", "-b", "4", "-1"}, false},
		{"damaged", []string{"-m", "4", "-c", "-1"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "dirty"), c.args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			var last Dirty
			for text := range strings.Lines(string(out)) {
				line, ok := Parse(text)
				if !ok {
					t.Fatalf("not a line of ours: %q", text)
				}
				if d, ok := line.Body.(Dirty); ok {
					last = d
				}
			}
			if last.Written == 0 || last.Pages != 1024 {
				t.Fatalf("wrote %d of %d pages", last.Written, last.Pages)
			}
			if (last.Bad > 0) != c.wantBad {
				t.Errorf("%d bad pages, want some: %t", last.Bad, c.wantBad)
			}
		})
	}
}
