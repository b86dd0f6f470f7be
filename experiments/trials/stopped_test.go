package trials

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/mustrun"
)

// TestCut_AnAgentStandsStill stops a node's agent, and the switch with it, for some
// seconds in the middle of checkpoints. Each commits or aborts; what guests send each
// other meanwhile waits, and nothing of it is lost, doubled or reordered. The links are
// plain TCP here; all other trials have TLS.
func TestCut_AnAgentStandsStill(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	r := newRig(t, 3, "--fabric-plaintext")
	r.app.Count, r.app.Work = 3, guests.RunCanary
	r.app.Canary = guests.Canary{Rate: 60, SizeBytes: 200, Length: 25 * time.Second, Wires: guests.AllWires}
	r.start()
	r.must(nil, "cluster", "create", "-f", r.spec(nil))
	r.must(nil, "cluster", "start", r.cluster)
	r.sending()
	r.checkpoint("--mode", "live")
	pid, err := r.AgentPID("n2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // the lab waits for it
	committed, failed := 0, 0
	for _, delay := range []time.Duration{20, 60, 120, 250} {
		ended := make(chan error, 1)
		go func() {
			ended <- r.Command(t.Context(), r.Output(), nil, "checkpoint", r.cluster, "--mode", "live")
		}()
		time.Sleep(delay * time.Millisecond)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		var refused *labrun.Failed
		switch err := <-ended; {
		case err == nil:
			committed++
		case errors.As(err, &refused):
			t.Logf("agent stopped after %d ms: %v", delay, refused)
			failed++
		default:
			t.Fatal(err)
		}
	}
	t.Logf("%d checkpoints committed, %d did not", committed, failed)
	r.checkpoint("--mode", "live") // all is well again
	if totals := r.counted(); !totals.Clean() {
		t.Errorf("%+v, want nothing lost, doubled or reordered", totals)
	}
}
