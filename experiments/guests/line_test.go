package guests

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tick := Line{Kind: "TICK", Body: Tick{N: 1, Uptime: 1.594, Wall: 1795455260.103},
		Pairs: map[string]string{"n": "1", "uptime": "1.594", "wall": "1795455260.103"}}
	for name, c := range map[string]struct {
		text string
		want Line
		ok   bool
	}{
		"whole":       {"FERMATA TICK n=1 uptime=1.594 wall=1795455260.103 #c211c1c9", tick, true},
		"tty newline": {"FERMATA TICK n=1 uptime=1.594 wall=1795455260.103 #c211c1c9\r\n", tick, true},
		"after the rest of a broken line": {
			"FERMATA CANARY-FINAL me=g1 froFERMATA TICK n=1 uptime=1.594 wall=1795455260.103 #c211c1c9", tick, true},
		"beginning lost":  {"TICK n=1 uptime=1.594 wall=1795455260.103 #c211c1c9", Line{}, false},
		"end lost":        {"FERMATA TICK n=1 uptime=1.594 wall=17954552", Line{}, false},
		"middle lost":     {"FERMATA TICK n=1 uptime=1.55260.103 #c211c1c9", Line{}, false},
		"two halves":      {"FERMATA TICK n=1 uptFERMATA TICK n=9 upt", Line{}, false},
		"kernel message":  {"[    2.125000] e1000e: something", Line{}, false},
		"empty":           {"", Line{}, false},
		"prefix only":     {"FERMATA ", Line{}, false},
		"unknown kind":    {sealed("FERMATA NOVELTY a=b"), Line{Kind: "NOVELTY", Pairs: map[string]string{"a": "b"}}, true},
		"missing value":   {sealed("FERMATA TICK n=1 uptime=1.594"), Line{}, false},
		"not a number":    {sealed("FERMATA TICK n=x uptime=1.5 wall=1.5"), Line{}, false},
		"word with no =":  {sealed("FERMATA NOVELTY word"), Line{}, false},
		"prefix no kind":  {sealed("FERMATA"), Line{}, false},
		"negative number": {sealed("FERMATA CANARY-END me=g1 peers=1 wires=1 corrupt=-1"), Line{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Parse(c.text)
			if ok != c.ok {
				t.Fatalf("Parse(%q) = %v, want %v", c.text, ok, c.ok)
			}
			if diff := cmp.Diff(c.want, got); ok && diff != "" {
				t.Errorf("Parse(%q): -want +got\n%s", c.text, diff)
			}
		})
	}
}

// sealed adds the hash that checked wants.
func sealed(content string) string {
	return content + hashMark(content)
}

func FuzzParse(f *testing.F) {
	f.Add("FERMATA TICK n=1 uptime=1.594 wall=1795455260.103 #c211c1c9")
	f.Add(sealed("FERMATA X =") + "\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		line, ok := Parse(text)
		if ok && (line.Kind == "" || !strings.Contains(text, linePrefix)) {
			t.Errorf("Parse(%q) = %+v", text, line)
		}
	})
}
