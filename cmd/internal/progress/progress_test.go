package progress

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"fermata/protocol/api"
)

// events is what a checkpoint of two nodes looks like.
func events() []*api.Event {
	return []*api.Event{
		{Step: "prepare"},
		{Step: "cut", Node: "n1"},
		{Step: "persist", Node: "n1", DoneBytes: 1 << 20, TotalBytes: 4 << 20},
		{Step: "persist", Node: "n1", DoneBytes: 4 << 20, TotalBytes: 4 << 20},
		{Step: "persist", Node: "n2", Guest: "b", DoneBytes: 1, TotalBytes: 2},
		{Text: "done\x1b[2J"},
	}
}

func show(t *testing.T, m Mode, terminal bool) string {
	t.Helper()
	var out locked
	d, err := New(t.Context(), m, &out, terminal)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events() {
		d.Event(e)
	}
	if _, err := d.Write([]byte("notice\n")); err != nil {
		t.Fatal(err)
	}
	d.Close()
	return out.String()
}

func TestPlain_OneLineAStep(t *testing.T) {
	want := "prepare\ncut n1\npersist n1\npersist n2/b\ndone [2J\nnotice\n"
	if got := show(t, Plain, false); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestNoTerminal_NothingButNotices(t *testing.T) {
	for _, m := range []Mode{Auto, None} {
		if got := show(t, m, false); got != "notice\n" {
			t.Errorf("%s: %q", m, got)
		}
	}
	if got := show(t, None, true); got != "notice\n" {
		t.Errorf("none on a terminal: %q", got)
	}
}

func TestBars_ShowEveryPlaceWithItsBytes(t *testing.T) {
	got := show(t, Auto, true)
	for _, want := range []string{"n1", "n2/b", "persist", "4.0 MiB / 4.0 MiB", "notice\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%q", want, got)
		}
	}
}

// On success the bars end at what was moved, wherever the last event left them.
func TestBars_DoneFillsThem(t *testing.T) {
	var out locked
	d, err := New(t.Context(), Auto, &out, true)
	if err != nil {
		t.Fatal(err)
	}
	d.Event(&api.Event{Step: "persist", Node: "n1", DoneBytes: 1 << 20, TotalBytes: 4 << 20})
	d.Done()
	d.Close()
	if got := out.String(); !strings.Contains(got, "4.0 MiB / 4.0 MiB") {
		t.Errorf("no full bar in:\n%q", got)
	}
}

// Without a terminal numbers come every few seconds, also while nothing is heard.
func TestLines_NumbersWithoutATerminal(t *testing.T) {
	var out locked
	l := newLines(&out, false, time.Millisecond, time.Millisecond)
	defer l.Close()
	await := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), want); {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in:\n%s", want, out.String())
			}
		}
	}
	await(": waiting\n")
	l.Event(&api.Event{Step: "prepare"})
	await(": prepare\n")
	l.Event(&api.Event{Step: "persist", Node: "n1", DoneBytes: 1 << 20, TotalBytes: 4 << 20})
	l.Event(&api.Event{Step: "persist", Node: "n2", DoneBytes: 0, TotalBytes: 1 << 20})
	await(": persist n1: 1 MiB of 4 MiB (25 %), persist n2: 0 B of 1 MiB (0 %)\n")
	l.Done()
	await(": done, 5 MiB\n")
}

func TestMode_SetRefusesUnknownWords(t *testing.T) {
	var m Mode
	for _, word := range ModeNames() {
		if err := m.Set(word); err != nil || m.String() != word {
			t.Errorf("Set(%q) = %v, is %s", word, err, m)
		}
	}
	if err := m.Set("loud"); err == nil {
		t.Error("Set(loud) must fail")
	}
}

// locked is a buffer that the drawing goroutine and the test may both use.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
