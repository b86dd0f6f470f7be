package trials

import (
	"strings"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/fault"
)

// TestClock_StepsOnRequest puts a cluster back some seconds after its checkpoint. The
// guests' monotonic clocks go on where they stood; their real-time clocks, too, unless
// they are stepped: then heartbeats tell the present.
func TestClock_StepsOnRequest(t *testing.T) {
	const gone = 4 * time.Second
	r := newRig(t, 2)
	r.extra = "  guest_agent: true\n"
	r.start()
	r.bring()
	cp := r.checkpoint()
	time.Sleep(gone)
	before := r.ticks()
	for _, step := range []bool{false, true} {
		args := []string{"rollback", r.cluster, "--from", cp.ID}
		if step {
			args = append(args, "--step-clock")
		}
		begun := wall(time.Now())
		r.must(nil, args...)
		r.ticking(stepBudget)
		for guest, after := range r.ticks() {
			first, newest := after[0], after[len(after)-1]
			var last guests.Tick // before the checkpoint
			for _, tick := range before[guest] {
				if tick.N == first.N-1 {
					last = tick
				}
			}
			if last.N == 0 {
				t.Fatalf("guest %s: no heartbeat before number %d", guest, first.N)
			}
			t.Logf("guest %s, clock stepped %t: uptime %.3f, then %.3f; time %.3f, then %.3f", guest, step, last.Uptime, first.Uptime, last.Wall, newest.Wall)
			// Of each other they are a heartbeat apart, or what a busy machine makes of it.
			if d := (first.Uptime - last.Uptime).Duration(); d <= 0 || d > gone/2 {
				t.Errorf("guest %s: its monotonic clock went %s from one heartbeat to the next", guest, d)
			}
			if stepped := newest.Wall >= begun; stepped != step || newest.Wall > wall(time.Now()) {
				t.Errorf("guest %s: a heartbeat says %.3f, put back at %.3f", guest, newest.Wall, begun)
			}
		}
	}
}

func wall(t time.Time) guests.Seconds { return guests.Seconds(float64(t.UnixNano()) / 1e9) }

// ticks reads the heartbeats of all guests.
func (r *rig) ticks() map[string][]guests.Tick {
	r.Helper()
	all, err := r.consoles().Read(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	ticks := map[string][]guests.Tick{}
	for name, console := range all {
		labrun.Each(console, func(l guests.Line) {
			if tick, ok := l.Body.(guests.Tick); ok {
				ticks[name] = append(ticks[name], tick)
			}
		})
	}
	return ticks
}

// TestClock_RefusesWhatCannotBeTold: a cluster whose guests have no agent is left as it is.
func TestClock_RefusesWhatCannotBeTold(t *testing.T) {
	r := newRig(t, 1)
	r.app.Count = 1
	r.start()
	r.bring()
	r.checkpoint()
	r.refused(fault.Invalid, []string{"g1", "guest_agent: true", "chrony"}, "rollback", r.cluster, "--step-clock")
	r.ticking(stepBudget)
}

// TestClock_AgentIsMute: a guest that was promised to run an agent, and does not, runs
// all the same, and the report names it.
func TestClock_AgentIsMute(t *testing.T) {
	r := newRig(t, 1)
	r.app.Count = 1
	r.extra = "  guest_agent: true\n"
	r.start()
	r.must(nil, "cluster", "create", "-f", r.spec(func(s string) string {
		return strings.Replace(s, "console=ttyS0", "fermata.agent=none console=ttyS0", 1)
	}))
	r.must(nil, "cluster", "start", r.cluster)
	r.ticking(bootBudget)
	r.checkpoint()
	var report struct {
		Stepped    bool     `json:"clock_stepped"`
		NotStepped []string `json:"clock_not_stepped"`
	}
	r.must(&report, "rollback", r.cluster, "--step-clock", "-o", "json")
	if !report.Stepped || len(report.NotStepped) != 1 || !strings.HasPrefix(report.NotStepped[0], "g1: ") || !strings.Contains(report.NotStepped[0], "does not answer") {
		t.Errorf("report %+v", report)
	}
	r.ticking(stepBudget)
}
