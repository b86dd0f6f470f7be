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

// measurements are those of two sizes: stop-and-copy takes pause for 256 MiB
// and four times that for 1 GiB, Fermata's first a quarter of it.
func measurements(t *testing.T) ([]guest, map[size][]taken) {
	t.Helper()
	var all []guest
	out := map[size][]taken{}
	for i, memory := range []size{gib, 256 * mib} {
		g, err := newGuest(memory, "k", "i")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, g)
		pause := []time.Duration{4, 1}[i] * 200 * time.Millisecond
		for n := range 3 {
			for method, part := range map[string]time.Duration{stopAndCopy: 1, background: 200, fermataFirst: 4, fermataNext: 2} {
				tk := taken{method: method, pauseFrom: "x", pause: pause/part + time.Duration(n-1)*time.Millisecond/10,
					silence: pause, durable: pause * part, nonZeroBytes: 1 << 20, storedBytes: 1 << 19, loadRate: 1.5}
				if method == fermataFirst || method == fermataNext {
					tk.command, tk.parts = pause*part+1, map[string]time.Duration{"memory": pause / part / 2, "stop": time.Millisecond}
				}
				out[memory] = append(out[memory], tk)
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
	for _, r := range doc.Rows {
		got = append(got, fmt.Sprintf("%s %s %d %v %s", size(r.MemoryBytes), r.Method, r.PauseMeasured["x"], r.PauseMS.Median(), parts(r)))
	}
	want := []string{
		"1GiB stop-and-copy 3 800 ", "1GiB background-snapshot 3 4 ",
		"1GiB fermata-first 3 200 stop 1.0, memory 100.0", "1GiB fermata-next 3 400 stop 1.0, memory 200.0",
		"256MiB stop-and-copy 3 200 ", "256MiB background-snapshot 3 1 ",
		"256MiB fermata-first 3 50 stop 1.0, memory 25.0", "256MiB fermata-next 3 100 stop 1.0, memory 50.0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	met := map[string]bool{}
	for _, g := range doc.Goals {
		met[g.Name] = g.Met
	}
	for name, want := range map[string]bool{
		"1GiB: pause of fermata-first over stop-and-copy":         true,
		"1GiB: pause of fermata-next over stop-and-copy":          false,
		"256MiB: pause of fermata-first over background-snapshot": false,
		"256MiB: durable, fermata-next over stop-and-copy":        false,
		"pause of fermata-first, 1GiB over 256MiB":                false,
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
	if one := goals(all[:1], doc.Rows); len(one) != 6 {
		t.Errorf("%d goals for one size, want 6: growth needs two", len(one))
	}
}

func TestRepeat_TakesTurns(t *testing.T) {
	all, _ := measurements(t)
	var order []string
	subjectOf := func(name string) subject {
		return subject{name, func(_ context.Context, g guest) ([]taken, error) {
			order = append(order, fmt.Sprint(name, g.memory))
			return []taken{{method: name}}, nil
		}}
	}
	results, err := repeat(t.Context(), 2, all, []subject{subjectOf("a"), subjectOf("b")}, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a1GiB", "b1GiB", "a256MiB", "b256MiB", "b1GiB", "a1GiB", "b256MiB", "a256MiB"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if len(results[gib]) != 4 || len(results[256*mib]) != 4 {
		t.Errorf("results %v", results)
	}
	broken := errors.New("broken")
	_, err = repeat(t.Context(), 2, all, []subject{{"a", func(context.Context, guest) ([]taken, error) { return nil, broken }}}, func(string, ...any) {})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "a at 1GiB, round 1") {
		t.Errorf("error %v", err)
	}
}
