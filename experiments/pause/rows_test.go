package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"fermata/experiments/result"
)

func newPair(t *testing.T, memory size) pair {
	t.Helper()
	var p pair
	for g, idle := range map[*guest]bool{&p.busy: false, &p.idle: true} {
		var err error
		if *g, err = newGuest(memory, "k", "i", idle); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// measurements are three of each method at two sizes: a live pause of 2 ms, which
// is 3 ms in the large guest, and of background-snapshot 20 and 200 ms.
func measurements(t *testing.T) ([]pair, map[size][]taken) {
	t.Helper()
	all := []pair{newPair(t, 4*gib), newPair(t, 512*mib)}
	out := map[size][]taken{}
	for i, p := range all {
		large := i == 0
		choose := func(a, b float64) time.Duration {
			if large {
				return fromMS(a)
			}
			return fromMS(b)
		}
		for _, m := range []taken{
			{method: stopAndCopy, pause: time.Second, durable: time.Second, storedBytes: 1 << 30},
			{method: background, pause: choose(200, 20), durable: 9 * time.Second, storedBytes: 1 << 30},
			{method: backgroundNewer, pause: choose(100, 10), durable: 12 * time.Second, storedBytes: 1 << 30},
			{method: fermataStop, pause: time.Second, durable: time.Second, storedBytes: 1 << 30, command: 1},
			{method: fermataFirst, pause: choose(3, 2), durable: 4 * time.Second, storedBytes: 1 << 30, command: 1},
			{method: fermataNext, pause: choose(2.2, 2), durable: time.Second, storedBytes: 1 << 20, command: 1},
			{method: fermataIdle, pause: choose(2, 2), durable: choose(400, 200), storedBytes: 1 << 20, command: 1},
		} {
			m.pauseFrom, m.qemu = "x", "7.2"
			if m.method != fermataIdle {
				m.silence, m.silenceBefore, m.before, m.during, m.after = m.pause+1, 1, 20, 10, 20
			}
			if m.command > 0 {
				m.parts, m.details = map[string]time.Duration{"stop": m.pause / 2}, map[string]float64{"write_faults": 7}
			}
			for range 3 {
				out[p.busy.memory] = append(out[p.busy.memory], m)
			}
		}
	}
	return all, out
}

func TestDocument_RowsAndGoals(t *testing.T) {
	all, results := measurements(t)
	doc := result.Document[row]{Experiment: name, Machine: result.Machine{CPUs: 1, Kernel: "6"}, Commit: "c"}
	doc.Rows = newRows(all, results)
	doc.Goals = goals(all, doc.Rows)

	var got []string
	for _, r := range doc.Rows[:len(methods)] {
		got = append(got, fmt.Sprintf("%s %s %d %v %s", size(r.MemoryBytes), r.Method, r.PauseMeasured["x"], r.PauseMS.Median(), parts(r)))
	}
	want := []string{
		"4GiB stop-and-copy 3 1000 ", "4GiB background-snapshot 3 200 ", "4GiB background-snapshot-newer 3 100 ",
		"4GiB fermata-stop 3 1000 stop 500.0", "4GiB fermata-live-first 3 3 stop 1.5", "4GiB fermata-live-next 3 2.2 stop 1.1",
		"4GiB fermata-live-idle 3 2 stop 1.0",
	}
	if !slices.Equal(got, want) || len(doc.Rows) != 2*len(methods) {
		t.Errorf("%d rows\n%s\nwant\n%s", len(doc.Rows), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	met := map[string]bool{}
	for _, g := range doc.Goals {
		met[g.Name] = g.Met
	}
	for name, want := range map[string]bool{
		"4GiB: pause of fermata-live-first, median, ms":              true,
		"512MiB: pause of fermata-live-next, p99, ms":                true,
		"pause of fermata-live-first, 4GiB over 512MiB":              false,
		"pause of fermata-live-next, 4GiB over 512MiB":               true,
		"4GiB: pause, fermata-live-first over background-snapshot":   true, // the better one: 3 over 100
		"4GiB: durable, fermata-live-first over background-snapshot": false,
		"512MiB: stored, fermata-live-idle over fermata-live-first":  true,
		"4GiB: durable, fermata-live-idle, ms":                       false,
		"512MiB: durable, fermata-live-idle, ms":                     true,
	} {
		if is, ok := met[name]; !ok || is != want {
			t.Errorf("goal %q: there %t, met %t, want %t", name, ok, is, want)
		}
	}

	var b bytes.Buffer
	if err := doc.Encode(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := result.Decode[row](&b); err != nil {
		t.Error(err)
	}
	if err := doc.WriteTable(io.Discard, columns()); err != nil {
		t.Error(err)
	}
	if err := result.WriteSVG(io.Discard, panels(all, doc.Rows)...); err != nil {
		t.Error(err)
	}
}

// TestDocument_WithoutLive is what a fermata that cannot take live checkpoints gives.
func TestDocument_WithoutLive(t *testing.T) {
	all, results := measurements(t)
	for memory := range results {
		results[memory] = slices.DeleteFunc(results[memory], func(t taken) bool { return strings.Contains(t.method, "live") || t.method == backgroundNewer })
	}
	rows := newRows(all, results)
	if got := goals(all, rows); len(rows) != 6 || len(got) != 0 {
		t.Errorf("%d rows, goals %v", len(rows), got)
	}
	if err := result.WriteSVG(io.Discard, panels(all, rows)...); err != nil {
		t.Error(err)
	}
}

func TestShares(t *testing.T) {
	for _, c := range []struct {
		n, boots int
		want     []int
	}{
		{20, 2, []int{10, 10}}, {3, 2, []int{1, 2}}, {1, 4, []int{1}}, {5, 1, []int{5}},
	} {
		if got := shares(c.n, c.boots); !slices.Equal(got, c.want) {
			t.Errorf("%d over %d boots: %v, want %v", c.n, c.boots, got, c.want)
		}
	}
}

func TestRepeat_TakesTurns(t *testing.T) {
	all, _ := measurements(t)
	var order []string
	subjectOf := func(name string, idle bool) subject {
		return subject{name: name, idle: idle, trial: func(_ context.Context, g guest, n int) ([]taken, error) {
			order = append(order, fmt.Sprintf("%s %s %d", name, g.memory, n))
			if g.idle != idle {
				t.Errorf("%s got another guest", name)
			}
			return []taken{{method: name}}, nil
		}}
	}
	results, err := repeat(t.Context(), 3, 2, all, []subject{subjectOf("a", false), subjectOf("b", true)}, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a 4GiB 1", "b 4GiB 1", "a 512MiB 1", "b 512MiB 1", "b 4GiB 2", "a 4GiB 2", "b 512MiB 2", "a 512MiB 2"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if len(results[4*gib]) != 4 || len(results[512*mib]) != 4 {
		t.Errorf("results %v", results)
	}
	broken := errors.New("broken")
	_, err = repeat(t.Context(), 2, 1, all, []subject{{name: "a", trial: func(context.Context, guest, int) ([]taken, error) { return nil, broken }}}, func(string, ...any) {})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "a at 4GiB, round 1") {
		t.Errorf("error %v", err)
	}
}
