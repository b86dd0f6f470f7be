//go:build failpoints

package coordinator_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
)

// labFaults are what goes wrong while a command stands still at a step; each returns
// what ends it.
var labFaults = map[string]func(l *lab, restartAgent func()) (heal func()){
	"agent restarts": func(_ *lab, restartAgent func()) func() {
		restartAgent()
		return func() {}
	},
	"agent hangs": func(l *lab, _ func()) func() {
		for _, call := range []coordinatortest.Call{coordinatortest.Destroy, coordinatortest.Create, coordinatortest.Release} {
			l.agents["n2"].Inject(call, func(ctx context.Context, work func() error) error {
				select {
				case <-time.After(500 * time.Millisecond):
					return work()
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		}
		return l.agents["n2"].Heal
	},
	"repository hangs": func(l *lab, _ func()) func() {
		_, heal := l.hang()
		timer := time.AfterFunc(3*time.Second, heal) // longer than a node may take
		return func() {
			timer.Stop()
			heal()
		}
	},
	"repository read-only": func(l *lab, _ func()) func() { return l.readOnly(syscall.EROFS) },
	"repository full":      func(l *lab, _ func()) func() { return l.readOnly(syscall.ENOSPC) },
}

// TestFailpoints_FaultsInACommand lets each fault come while a command stands still at
// one of its steps. The command ends; the state that is shown is true; guests that were
// running before a command that is not to stop them run on, or the command says that
// they do not; and the next command works.
func TestFailpoints_FaultsInACommand(t *testing.T) {
	for _, p := range []failpoint.Point{failpoint.CoordinatorAfterCheck, failpoint.CoordinatorAfterRecord, failpoint.CoordinatorAfterDestroy} {
		for _, command := range commandsAt(p) {
			if p == failpoint.CoordinatorAfterCheck && command != "rollback" {
				continue // as before after-record: nothing runs that could be lost
			}
			for name, begin := range labFaults {
				t.Run(fmt.Sprintf("%s/%s/%s", command, strings.TrimPrefix(string(p), "coordinator/"), name), func(t *testing.T) {
					testFault(t, p, command, begin)
				})
			}
		}
	}
}

func testFault(t *testing.T, p failpoint.Point, command string, begin func(*lab, func()) func()) {
	l := newLoneLab(t, "n1")
	l.timeouts = quick()
	a, err := coordinatortest.New(t.Context(), coordinatortest.Config{
		Name: "n2", Repository: l.repoConfig(), MemoryBytes: 64 * mib,
		Coordinators: []string{l.address(0)}, Socket: l.dir + "/n2.sock",
	})
	if err != nil {
		t.Fatal(err)
	}
	l.agents["n2"] = a
	end := run(t, "agent n2", a.Run)
	c := l.ready(0)
	c.running("web", "a", "b")
	c.mustCheckpoint("web")
	if command == "start" || command == "restart" {
		if _, err := c.stopCluster("web"); err != nil {
			t.Fatal(err)
		}
	}
	reached := failpoint.Reached(p)
	disarm, err := failpoint.Arm(p, "hang@1")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- failpointCommands[command](c) }()
	l.await("the step is reached", func() bool { return failpoint.Reached(p) > reached })
	heal := begin(l, func() {
		end()
		run(t, "agent n2 again", a.Run)
	})
	disarm() // the command goes on
	var said error
	select {
	case said = <-ended:
	case <-time.After(patience):
		t.Fatal("the command does not end")
	}
	heal()
	l.settled()
	got, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v; shown %v %s", command, said, got.GetState(), got.GetReason())
	running := l.runningGuests("web")
	switch got.GetState() {
	case up:
		if running != 2 {
			t.Errorf("shown as running, and %d of 2 guests run", running)
		}
	case stopped:
		if running != 0 {
			t.Errorf("shown as stopped, and %d guests run", running)
		}
		if command == "rollback" && got.GetReason() == "" {
			t.Error("the guests were ended by a rollback, and nothing says why")
		}
	default:
		t.Errorf("the cluster is left %v: %s", got.GetState(), got.GetReason())
	}
	if said == nil && (got.GetState() == up) != (command != "stop") {
		t.Errorf("the command succeeded, and the cluster is %v", got.GetState())
	}
	if command == "rollback" && p == failpoint.CoordinatorAfterCheck && running != 2 {
		t.Error("guests were ended although nothing had been before the fault")
	}
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
		t.Errorf("the next command: %v", err)
	}
	if n := l.runningGuests("web"); n != 2 {
		t.Errorf("behind the next command %d of 2 guests run", n)
	}
	c.mustCheckpoint("web")
}
