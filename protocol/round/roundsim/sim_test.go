package roundsim_test

import (
	"flag"
	"reflect"
	"strings"
	"testing"

	"fermata/protocol/round/roundsim"
)

var (
	seed      = flag.Uint64("seed", 0, "run this one schedule and print its log")
	schedules = flag.Int("schedules", 2000, "number of schedules")
)

// TestStorm runs many schedules in which everything goes wrong.
func TestStorm(t *testing.T) {
	if *seed != 0 {
		stats, err := roundsim.Run(roundsim.Storm(*seed))
		t.Logf("%+v", stats)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	n := *schedules
	if testing.Short() || raceDetector {
		n = min(n, 100)
	}
	var all roundsim.Stats
	for s := range n {
		stats, err := roundsim.Run(roundsim.Storm(uint64(s + 1)))
		if err != nil {
			t.Fatalf("%v\nrepeat with: go test ./protocol/round/roundsim -run TestStorm -v -seed=%d", err, s+1)
		}
		all.Add(stats)
	}
	t.Logf("%d schedules: %+v", n, all)
	if n < 1000 {
		return
	}
	// A storm in which something never happens proves nothing about it.
	v := reflect.ValueOf(all)
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
			t.Errorf("%s never happened in %d schedules", v.Type().Field(i).Name, n)
		}
	}
}

// TestCalm shows that rounds end well when nothing goes wrong, so that the
// protocol does not keep its invariants by never doing anything.
func TestCalm(t *testing.T) {
	for nodes := 1; nodes <= 5; nodes++ {
		for s := range uint64(20) {
			cfg := roundsim.Calm(s, nodes)
			stats, err := roundsim.Run(cfg)
			if err != nil {
				t.Fatalf("%d nodes: %v", nodes, err)
			}
			if stats.Committed != cfg.Rounds || stats.Aborted != 0 {
				t.Fatalf("%d nodes, seed %d: %d of %d rounds committed, %d aborted", nodes, s, stats.Committed, cfg.Rounds, stats.Aborted)
			}
		}
	}
}

// TestControls shows that the check of consistency, I11, can fail: without channel
// state a frame is missing sooner or later, without the colour rule one is in an
// image that its sender's image has not sent.
func TestControls(t *testing.T) {
	for name, breakIt := range map[string]func(*roundsim.Config){
		"forget channels": func(c *roundsim.Config) { c.ForgetChannels = true },
		"deliver early":   func(c *roundsim.Config) { c.DeliverEarly = true },
	} {
		t.Run(name, func(t *testing.T) {
			const schedules = 300
			for s := range uint64(schedules) {
				cfg := roundsim.Calm(s, 3)
				breakIt(&cfg)
				if _, err := roundsim.Run(cfg); err != nil {
					if !strings.Contains(err.Error(), "I11") {
						t.Fatal(err)
					}
					return
				}
			}
			t.Errorf("not noticed in %d schedules", schedules)
		})
	}
}

// TestRun_Repeats shows that a seed determines a run.
func TestRun_Repeats(t *testing.T) {
	for s := range uint64(20) {
		a, errA := roundsim.Run(roundsim.Storm(s))
		b, errB := roundsim.Run(roundsim.Storm(s))
		if a != b || errA != nil || errB != nil {
			t.Fatalf("seed %d: %+v (%v), then %+v (%v)", s, a, errA, b, errB)
		}
	}
}
