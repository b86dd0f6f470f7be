package round_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

// TestScripts runs the stories in testdata. A story is a sequence of
//
//	command argument key=value
//	----
//	what is expected to happen
//
// with an empty line behind each, and comments that begin with #. The commands
// are those of env.run.
func TestScripts(t *testing.T) {
	stories, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(stories) < 12 {
		t.Fatalf("%d stories, error %v", len(stories), err)
	}
	for _, path := range stories {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s differs; with -update, git diff shows how. Now:\n%s", path, got)
			}
		})
	}
}

// play runs a story and returns it with what has really happened.
func play(t *testing.T, story string) string {
	t.Helper()
	e := newEnv(t)
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(story, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if line == "" || strings.HasPrefix(line, "#") {
			out.WriteString(line + "\n")
			continue
		}
		out.WriteString(line + "\n----\n" + e.run(strings.Fields(line)) + "\n")
		if i+1 < len(lines) && lines[i+1] == "----" {
			for i++; i+1 < len(lines) && lines[i+1] != ""; i++ {
			}
		}
		if i+1 < len(lines) && lines[i+1] == "" {
			i++ // written with the output
		}
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}
