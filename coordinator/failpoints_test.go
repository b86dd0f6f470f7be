//go:build failpoints

package coordinator_test

import (
	"strings"
	"testing"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// the commands that a leader is lost in.
var failpointCommands = map[string]func(*client) error{
	"start": func(c *client) error { _, err := c.startCluster("web"); return err },
	"stop":  func(c *client) error { _, err := c.stopCluster("web"); return err },
	"restart": func(c *client) error {
		_, err := c.restart(&api.RestartRequest{Cluster: "web"})
		return err
	},
	"rollback": func(c *client) error {
		_, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true})
		return err
	},
	"checkpoint": func(c *client) error { _, err := c.checkpoint("web"); return err },
	"aborted checkpoint": func(c *client) error {
		c.lab.agents["n2"].Inject(coordinatortest.Persist, coordinatortest.Refuse(fault.NoSpace, "full"))
		_, err := c.checkpoint("web")
		return err
	},
}

// commandsAt are the commands that reach a point.
func commandsAt(p failpoint.Point) []string {
	raise := []string{"start", "restart", "rollback"}
	switch p {
	case failpoint.CoordinatorBeforeStore, failpoint.CoordinatorAfterStore, failpoint.CoordinatorAfterPrepare,
		failpoint.CoordinatorAfterCut, failpoint.CoordinatorAfterPersist, failpoint.CoordinatorBeforeCommit,
		failpoint.CoordinatorAfterCommit, failpoint.CoordinatorAfterFinish:
		return []string{"checkpoint"}
	case failpoint.CoordinatorBeforeAbort, failpoint.CoordinatorAfterAbort:
		return []string{"aborted checkpoint"}
	case failpoint.CoordinatorAfterElection:
		return nil // see TestFailpoints_Election
	case failpoint.CoordinatorAfterRecord, failpoint.CoordinatorAfterDestroy, failpoint.CoordinatorBeforeEnd:
		return append(raise, "stop")
	default:
		return raise
	}
}

// TestFailpoints_LeaderIsLost loses the leader at each point of each command that
// reaches it. Its successor brings the cluster to rest: with all its guests
// running, or stopped by an operator who asked for that. The state shown is true,
// and the next command works.
func TestFailpoints_LeaderIsLost(t *testing.T) {
	for _, p := range failpoint.Points() {
		if !strings.HasPrefix(string(p), "coordinator/") {
			continue
		}
		for _, command := range commandsAt(p) {
			t.Run(strings.TrimPrefix(string(p), "coordinator/")+"/"+command, func(t *testing.T) {
				l := newLoneLab(t, "n1", "n2")
				first := l.ready(0)
				first.running("web", "a", "b")
				before := first.mustCheckpoint("web")
				if command == "start" || command == "restart" {
					if _, err := first.stopCluster("web"); err != nil {
						t.Fatal(err)
					}
				}
				second := l.start(1)
				reached := failpoint.Reached(p)
				disarm, err := failpoint.Arm(p, "hang@1")
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- failpointCommands[command](first) }()
				l.await("the point is reached", func() bool { return failpoint.Reached(p) > reached })
				l.election.Depose()
				<-ended
				disarm()
				l.settled()
				l.nothingAside()
				got, err := second.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
				if err != nil {
					t.Fatal(err)
				}
				running := l.runningGuests("web")
				switch {
				case got.GetState() == up && running == 2:
				case got.GetState() == stopped && running == 0 && (command == "stop" || p == failpoint.CoordinatorAfterCheck && command != "rollback"):
				default:
					t.Errorf("the cluster is shown %v (%s), and %d of 2 guests run", got.GetState(), got.GetReason(), running)
				}
				if p == failpoint.CoordinatorAfterCommit && len(l.committed("web")) != 2 {
					t.Errorf("a checkpoint that was committed is not there: %v", l.committed("web"))
				}
				if got := l.committed("web"); len(got) == 0 || got[0] != before.GetEpoch() {
					t.Errorf("the checkpoint from before is gone: %v", got)
				}
				if _, err := second.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
					t.Errorf("the next command: %v", err)
				}
				second.mustCheckpoint("web")
			})
		}
	}
}

// TestFailpoints_Election loses a leader that has recovered nothing yet.
func TestFailpoints_Election(t *testing.T) {
	l := newLoneLab(t, "n1")
	first := l.ready(0)
	first.running("web", "a")
	p := failpoint.CoordinatorAfterElection
	reached := failpoint.Reached(p)
	disarm, err := failpoint.Arm(p, "hang@1")
	if err != nil {
		t.Fatal(err)
	}
	l.start(1)
	l.election.Depose()
	l.await("the second one is elected", func() bool { return failpoint.Reached(p) > reached })
	l.election.Depose()
	disarm()
	l.await("a leader serves", func() bool {
		_, err := first.checkpoint("web")
		return err == nil
	})
}

// TestFailpoints_ErrorInARound meets an error at each point of a round. The guests
// run on, and the next round commits.
func TestFailpoints_ErrorInARound(t *testing.T) {
	for _, p := range failpoint.Points() {
		if !strings.HasPrefix(string(p), "coordinator/") {
			continue
		}
		for _, command := range commandsAt(p) {
			if !strings.Contains(command, "checkpoint") {
				continue
			}
			t.Run(strings.TrimPrefix(string(p), "coordinator/"), func(t *testing.T) {
				l := newLoneLab(t, "n1", "n2")
				c := l.ready(0)
				c.running("web", "a", "b")
				disarm, err := failpoint.Arm(p, "error@1")
				if err != nil {
					t.Fatal(err)
				}
				defer disarm()
				err = failpointCommands[command](c)
				t.Logf("%s: %v", p, err)
				if n := len(l.committed("web")); (err == nil) != (n == 1) {
					t.Errorf("the caller reads %v, and %d checkpoints are there", err, n)
				}
				if n := l.runningGuests("web"); n != 2 {
					t.Errorf("%d guests run, want 2", n)
				}
				c.mustCheckpoint("web")
			})
		}
	}
}
