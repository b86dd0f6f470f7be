package trials

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/failpoint"
	"fermata/protocol/mustrun"
)

// liveRig is a lab that can be told where to die, with guests that rewrite memory
// and check it while they are captured live.
func newLiveRig(t *testing.T, writer guests.Writer, args ...string) *rig {
	mustrun.Need(t, mustrun.UFFD)
	r := newRig(t, 2, args...)
	r.Fermata = fermataBinary(t, "failpoints")
	writer.Every = 100 * time.Millisecond
	r.app.Work, r.app.Writer = guests.RunDirty, writer
	return r
}

// writing waits until every guest has looked at more of its memory, all of which
// was right.
func (r *rig) writing(budget time.Duration) {
	r.Helper()
	lines := map[string]int{}
	err := r.consoles().Await(r.Context(), budget, "the guests' writers", func(all map[string][]byte) (bool, error) {
		done := true
		for name, console := range all {
			n := 0
			var last guests.Dirty
			labrun.Each(console, func(l guests.Line) {
				if d, ok := l.Body.(guests.Dirty); ok {
					n++
					last = d
				}
			})
			if last.Bad != 0 {
				return false, fmt.Errorf("guest %s found %d bad pages", name, last.Bad)
			}
			first, known := lines[name]
			if !known {
				lines[name] = n
			}
			done = done && known && n >= first+2
		}
		return done, nil
	})
	if err != nil {
		r.Fatal(err)
	}
}

// arm makes the agent of a node meet a plan in its next life, which begins now.
func (r *rig) arm(node, plan string) {
	r.Helper()
	if err := r.RenewAgent(r.Context(), node, plan, r.cluster, r.app.Count); err != nil {
		r.Fatal(err)
	}
}

// ready waits until all agents serve.
func (r *rig) ready() {
	r.Helper()
	if err := r.AwaitRunning(r.Context(), r.cluster, r.app.Count); err != nil {
		r.Fatal(err)
	}
}

// tried takes a checkpoint that may fail, and tells whether it is there.
func (r *rig) tried() (committed bool) {
	r.Helper()
	before := r.checkpointIDs()
	_ = r.Command(r.Context(), r.Output(), nil, "checkpoint", r.cluster, "--mode", "live")
	after := r.checkpointIDs()
	if len(after) < len(before) || !slices.Equal(before, after[:len(before)]) {
		r.Fatalf("checkpoints %v, were %v", after, before)
	}
	return len(after) > len(before)
}

// TestLive_AgentDiesAtEveryStep kills an agent at each of its points of a round,
// while it captures guests live that write all the time. The guests never notice,
// the checkpoint is there as a whole or not at all, and the next one works.
func TestLive_AgentDiesAtEveryStep(t *testing.T) {
	r := newLiveRig(t, guests.Writer{MiB: 24, Rate: 40})
	r.start()
	r.bring()
	r.writing(bootBudget)
	r.checkpoint()
	for _, point := range failpoint.Points() {
		name, ofAgent := strings.CutPrefix(string(point), "nodeagent/")
		switch point {
		case failpoint.AgentAfterCreate, failpoint.AgentBeforeRelease:
			continue // of a restart
		}
		if !ofAgent {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r.arm("n2", string(point)+"=kill")
			committed := r.tried()
			r.writing(stepBudget)
			r.ready()
			t.Logf("committed: %t", committed)
			r.must(nil, "checkpoint", r.cluster, "--mode", "live")
			r.writing(stepBudget)
		})
	}
	// Each that is listed can be read to its last byte.
	r.must(nil, "checkpoints", "verify", r.checkpointIDs()[len(r.checkpointIDs())-1])
	r.must(nil, "rollback", r.cluster)
	r.writing(stepBudget)
}

// TestLive_AgentHangs stops an agent for five seconds in the middle of a pause,
// and in the middle of the sweep. The guests run again without it.
func TestLive_AgentHangs(t *testing.T) {
	r := newLiveRig(t, guests.Writer{MiB: 24, Rate: 40})
	r.start()
	r.must(nil, "cluster", "create", "-f", r.spec(func(s string) string {
		return s + "policies:\n  pause_budget: 500ms\n"
	}))
	r.must(nil, "cluster", "start", r.cluster)
	r.writing(bootBudget)
	r.checkpoint()
	for _, point := range []failpoint.Point{failpoint.AgentAfterSaveMemory, failpoint.AgentBeforePersist} {
		t.Run(string(point), func(t *testing.T) {
			r.arm("n2", string(point)+"=stop@1")
			pid := r.agentPID("n2")
			done := make(chan bool, 1)
			go func() { done <- r.tried() }()
			err := labrun.Poll(t.Context(), stepBudget, "the agent to stop", func() (bool, error) {
				b, err := os.ReadFile("/proc/" + pid + "/stat")
				return err == nil && strings.Contains(string(b), ") T "), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(8 * time.Second) // longer than the guard's patience for either
			console := filepath.Join(r.Dir, "nodes", "n2", "state", "guests", r.cluster+".g2", "console.log")
			b, err := os.ReadFile(console) // nobody else could tell
			if err != nil {
				t.Fatal(err)
			}
			before := lastTick(b)
			err = labrun.Poll(t.Context(), stepBudget, "the guest to run without its agent", func() (bool, error) {
				b, err := os.ReadFile(console)
				return lastTick(b) >= before+3, err
			})
			if err != nil {
				t.Error(err)
			}
			if err := run(t.Context(), "kill", "-CONT", pid); err != nil {
				t.Fatal(err)
			}
			if <-done {
				t.Error("a checkpoint was committed though its agent hung")
			}
			r.ready()
			r.writing(stepBudget)
			r.must(nil, "checkpoint", r.cluster, "--mode", "live")
			r.writing(stepBudget)
		})
	}
}

// TestLive_StorageStallsOrFails lets the repository hang and fail in the middle
// of the sweep.
func TestLive_StorageStallsOrFails(t *testing.T) {
	r := newLiveRig(t, guests.Writer{MiB: 24, Rate: 40})
	r.start()
	r.bring()
	r.writing(bootBudget)
	r.checkpoint()
	for _, action := range []string{"error(no such luck)", "delay(3s)", "error@2"} {
		t.Run(action, func(t *testing.T) {
			r.arm("n2", string(failpoint.AgentBeforePersist)+"="+action)
			committed := r.tried()
			if slow := strings.HasPrefix(action, "delay"); committed != slow && action != "error@2" {
				t.Errorf("committed %t", committed)
			}
			r.writing(stepBudget)
			r.arm("n2", "")
			r.must(nil, "checkpoint", r.cluster, "--mode", "live")
			r.writing(stepBudget)
		})
	}
}

// TestLive_MemoryCap captures a guest that rewrites 1 GiB, with room for 32 MiB of
// what it writes meanwhile.
func TestLive_MemoryCap(t *testing.T) {
	r := newLiveRig(t, guests.Writer{MiB: 1024}, "--node-capture", "32")
	r.app.Count = 1
	r.memory = "1536MiB"
	r.start()
	r.bring()
	r.writing(bootBudget)
	for range 2 {
		var rep struct {
			Guests []struct {
				Mode            string `json:"mode"`
				PeakBufferBytes uint64 `json:"peak_buffer_bytes"`
				WriteFaults     uint64 `json:"write_faults"`
			} `json:"guests"`
		}
		r.must(&rep, "checkpoint", r.cluster, "--mode", "live", "-o", "json")
		for _, g := range rep.Guests {
			if g.Mode != "live" || g.PeakBufferBytes > 32<<20 || g.PeakBufferBytes < 16<<20 || g.WriteFaults == 0 {
				t.Errorf("%+v: want live, and the buffer used but not beyond 32 MiB", g)
			}
		}
		r.writing(bootBudget)
	}
	r.must(nil, "rollback", r.cluster)
	r.writing(bootBudget)
}
