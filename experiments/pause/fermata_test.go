package main

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"
)

func TestParseAbilities(t *testing.T) {
	for help, want := range map[string]abilities{
		"Flags:\n  -h, --help   help\n      --label text":                        {},
		"Flags:\n      --mode live|stop|auto   how":                              {modes: true},
		"Flags:\n      --full   all memory\n      --mode live|stop   how (--fu)": {modes: true, full: true},
	} {
		if got := parseAbilities(help); got != want {
			t.Errorf("%q: %+v, want %+v", help, got, want)
		}
	}
}

func TestWays(t *testing.T) {
	methods := func(ways []way) (names []string) {
		for _, w := range ways {
			names = append(names, w.method)
		}
		return names
	}
	if got := (abilities{}).busyWays(); len(got) != 1 || got[0].flags() != nil {
		t.Errorf("a fermata of one mode: %+v", got)
	}
	got := abilities{modes: true, full: true}.busyWays()
	if want := []string{fermataFirst, fermataNext, fermataStop}; !slices.Equal(methods(got), want) {
		t.Fatalf("%v, want %v", methods(got), want)
	}
	if once := (abilities{modes: true}).busyWays(); !once[0].once || got[0].once {
		t.Errorf("%+v and %+v, want the first way once only without --full", once[0], got[0])
	}
	if flags := got[0].flags(); !slices.Equal(flags, []string{"--mode", "live", "--full"}) {
		t.Errorf("flags %v", flags)
	}
}

func TestGuestCheckpoint(t *testing.T) {
	var old, live guestCheckpoint
	for text, into := range map[string]*guestCheckpoint{
		`{"pause_ms": 9, "stop_ms": 1.5, "memory_ms": 7}`: &old,
		`{"mode": "live", "pause_ms": 2, "phases_us": {"gate": 100, "rearm": 250}, "stop_ms": 1, "arm_us": 900, "write_faults": 0}`: &live,
	} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	if p := old.parts(); p["stop"] != 1500*time.Microsecond || p["memory"] != 7*time.Millisecond || len(old.details()) != 0 {
		t.Errorf("parts %v, details %v", p, old.details())
	}
	if p := live.parts(); !maps.Equal(p, map[string]time.Duration{"gate": 100 * time.Microsecond, "rearm": 250 * time.Microsecond}) {
		t.Errorf("parts %v", p)
	}
	if d := live.details(); !maps.Equal(d, map[string]float64{"arm_us": 900, "write_faults": 0}) {
		t.Errorf("details %v", d)
	}
}
