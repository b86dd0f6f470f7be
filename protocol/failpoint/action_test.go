package failpoint

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePlan(t *testing.T) {
	plan, err := ParsePlan(" nodeagent/after-stop=kill; coordinator/before-commit = delay(2s)@3;nodeagent/after-mark=error(a=b) ;")
	if err != nil {
		t.Fatal(err)
	}
	want := Plan{
		AgentAfterStop:          {kind: kindKill},
		CoordinatorBeforeCommit: {kind: kindDelay, delay: 2 * time.Second, on: 3},
		AgentAfterMark:          {kind: kindError, text: "a=b"},
	}
	if len(plan) != len(want) {
		t.Errorf("plan %+v, want %+v", plan, want)
	}
	for p, a := range want {
		if plan[p] != a {
			t.Errorf("%s: %+v, want %+v", p, plan[p], a)
		}
	}
	for _, bad := range []string{
		"nodeagent/after-stop", "no/such-point=kill", "nodeagent/after-stop=explode", "nodeagent/after-stop=delay",
		"nodeagent/after-stop=delay(soon)", "nodeagent/after-stop=delay(1s", "nodeagent/after-stop=kill@0",
		"nodeagent/after-stop=kill(9)", "nodeagent/after-stop=kill;nodeagent/after-stop=stop",
	} {
		if plan, err := ParsePlan(bad); err == nil {
			t.Errorf("ParsePlan(%q) = %+v, want an error", bad, plan)
		}
	}
}

// TestPoints keeps the registry and the sources together: names follow the
// rule, each constant is listed, and no code reaches a point by another name.
func TestPoints(t *testing.T) {
	name := regexp.MustCompile(`^[a-z]+/(before|after)-[a-z-]+$`)
	for _, p := range Points() {
		if !name.MatchString(string(p)) {
			t.Errorf("point %q: want PACKAGE/before-MOMENT or PACKAGE/after-MOMENT", p)
		}
	}
	source, err := os.ReadFile("point.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := regexp.MustCompile(`Point = "([^"]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(constants) != len(Points()) {
		t.Errorf("%d constants, %d listed", len(constants), len(Points()))
	}
	for _, c := range constants {
		if !slices.Contains(Points(), Point(c[1])) {
			t.Errorf("point %q is not in Points", c[1])
		}
	}
	document, err := os.ReadFile(filepath.Join("..", "PROTOCOL.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Points() {
		if !strings.Contains(string(document), "| `"+string(p)+"` |") {
			t.Errorf("point %q is not in PROTOCOL.md", p)
		}
	}
	literal := regexp.MustCompile(`failpoint\.(Inject|Arm)\([^)]*"`)
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "..", "..")
	for _, dir := range []string{"coordinator", "nodeagent", "cmd"} {
		_ = filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if literal.Match(text) {
				t.Errorf("%s reaches a failpoint by a literal name; use the constant", path)
			}
			return nil
		})
	}
}
