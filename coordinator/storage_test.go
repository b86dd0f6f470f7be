package coordinator_test

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fermata/coordinator"
	"fermata/coordinator/coordinatortest"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// hang makes the repository's file system hang until heal is called, and no
// later than the test's end. Whoever asks is counted by a value in asked.
func (l *lab) hang() (asked chan struct{}, heal func()) {
	gone := make(chan struct{})
	asked = make(chan struct{}, 1000)
	l.disk.Break(func(bool) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-gone
		return nil
	})
	heal = sync.OnceFunc(func() {
		l.disk.Break(nil)
		close(gone)
	})
	l.t.Cleanup(heal)
	return asked, heal
}

// readOnly makes the repository's file system refuse changes until heal is called.
func (l *lab) readOnly(errno syscall.Errno) (heal func()) {
	l.disk.Break(func(writes bool) error {
		if writes {
			return errno
		}
		return nil
	})
	return func() { l.disk.Break(nil) }
}

// nothingAside waits until nothing is left for the repository to record.
func (l *lab) nothingAside() {
	l.t.Helper()
	l.await("what was set aside is settled", func() bool {
		ops, err := l.store.Unsettled(l.t.Context())
		return err == nil && len(ops) == 0
	})
}

// TestStorage_RefusesWritesInARound has the repository turn read-only or full in
// each step of a round that writes. The round ends, the cluster is free at once,
// and the repository learns of the abort when it can be written again.
func TestStorage_RefusesWritesInARound(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.ENOSPC} {
		for _, at := range []string{"persist", "commit"} {
			t.Run(strings.ReplaceAll(errno.Error(), " ", "-")+"/"+at, func(t *testing.T) {
				l := newLab(t, "n1", "n2")
				c := l.ready(0)
				c.running("web", "a", "b")
				before := c.mustCheckpoint("web")
				l.touch("web", "a", 7)
				heal := func() {}
				turn := func(_ context.Context, work func() error) error {
					if at == "persist" {
						heal = l.readOnly(errno)
						return work()
					}
					err := work()
					heal = l.readOnly(errno)
					return err
				}
				if at == "persist" {
					l.agents["n1"].Inject(coordinatortest.Persist, turn)
				} else {
					// The other node has persisted already: the commit is all that is left.
					first := make(chan struct{})
					l.agents["n2"].Inject(coordinatortest.Persist, func(_ context.Context, work func() error) error {
						defer close(first)
						return work()
					})
					l.agents["n1"].Inject(coordinatortest.Persist, func(ctx context.Context, work func() error) error {
						<-first
						return turn(ctx, work)
					})
				}
				_, err := c.checkpoint("web")
				if class := fault.ClassOf(err); class == fault.None || class == fault.Unknown {
					t.Errorf("checkpoint: %v (%v), want an abort", err, class)
				}
				epoch := l.lastEpoch("web")
				for name, a := range l.agents {
					if committed, told := a.Outcome("web", epoch); committed || !told {
						t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
					}
				}
				// The next one fails before it has touched a guest, and says why.
				cuts := l.agents["n1"].Calls(coordinatortest.Cut)
				_, err = c.checkpoint("web")
				wantFault(t, err, fault.ClassOf(coordinator.RepositoryFault(errno)), "repository", errno.Error())
				if l.agents["n1"].Calls(coordinatortest.Cut) != cuts {
					t.Error("a checkpoint that cannot be stored has cut guests")
				}
				// What only reads works.
				if _, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
					t.Errorf("rollback: %v", err)
				}
				if _, err := c.stopCluster("web"); err != nil {
					t.Errorf("stop: %v", err)
				}
				heal()
				l.nothingAside()
				l.awaitOutcome("web", epoch, repository.OutcomeAborted)
				if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
					t.Errorf("restart: %v", err)
				}
				c.mustCheckpoint("web")
				if got := l.committed("web"); len(got) != 2 || got[0] != before.GetEpoch() {
					t.Errorf("committed %v", got)
				}
			})
		}
	}
}

// TestStorage_AbortIsRecordedByASuccessor ends the coordinator while the
// repository is read-only: what it could not record its successor does.
func TestStorage_AbortIsRecordedByASuccessor(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	heal := l.readOnly(syscall.EROFS)
	if _, err := c.checkpoint("web"); err == nil {
		t.Fatal("a checkpoint in a repository that is read-only succeeded")
	}
	epoch := l.lastEpoch("web")
	second := l.start(1)
	c.stop()
	if _, err := second.stopCluster("web"); err != nil {
		t.Errorf("stop: %v", err)
	}
	heal()
	l.nothingAside()
	l.awaitOutcome("web", epoch, repository.OutcomeAborted)
}

// TestStorage_HangsInTheCommit cancels a checkpoint whose commit hangs. The
// cluster is free at once. Whether the commit or the abort is first in the
// repository when that answers again: one of them stands, and the nodes hear of it.
func TestStorage_HangsInTheCommit(t *testing.T) {
	for _, tc := range []struct {
		name  string
		lands bool
		want  repository.Outcome
	}{
		{"the commit lands first", true, repository.OutcomeCommitted},
		{"the abort lands first", false, repository.OutcomeAborted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			l.timeouts = quick()
			c := l.ready(0)
			c.running("web", "a", "b")
			at, hangs, landed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			goOn := sync.OnceFunc(func() { close(hangs) })
			t.Cleanup(goOn)
			l.disk.OnOutcome(func(link func() error) error {
				close(at)
				<-hangs
				err := link()
				landed <- err
				return err
			})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-at
				cancel()
			}()
			heal := func() {}
			if _, err := c.checkpointCtx(ctx, "web"); err == nil {
				t.Fatal("a checkpoint that was not committed succeeded")
			}
			if tc.lands {
				_, heal = l.hang()
			}
			l.await("the cluster is free", func() bool {
				ops, err := l.store.Operations(t.Context())
				return err == nil && len(ops) == 0
			})
			epoch := l.lastEpoch("web")
			if tc.lands {
				goOn()
				if err := <-landed; err != nil {
					t.Fatal(err)
				}
				heal()
			}
			l.nothingAside()
			goOn()
			if !tc.lands {
				if err := <-landed; err == nil {
					t.Error("a commit has landed after the abort")
				}
			}
			l.awaitOutcome("web", epoch, tc.want)
			for name, a := range l.agents {
				committed, told := a.Outcome("web", epoch)
				if !told || committed != (tc.want == repository.OutcomeCommitted) {
					t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
				}
			}
			c.mustCheckpoint("web")
		})
	}
}

// TestStorage_HangDoesNotKeepTheLead asks a leader to end while the repository
// hangs: it ends, and another leads.
func TestStorage_HangDoesNotKeepTheLead(t *testing.T) {
	l := newLab(t, "n1", "n2")
	first := l.ready(0)
	first.running("web", "g1", "g2")
	second := l.start(1)
	at, hangs := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(hangs) })
	l.disk.OnOutcome(func(link func() error) error { close(at); <-hangs; return link() })
	go func() { _, _ = first.checkpoint("web") }()
	<-at
	begun := time.Now()
	first.stop()
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the coordinator took %s to end", took)
	}
	l.await("the next leader stops the cluster", func() bool {
		_, err := second.stopCluster("web")
		return err == nil
	})
}

// TestStorage_HangDoesNotKeepFromLeadingAgain deposes the only coordinator while
// the repository hangs: it leads again, and serves.
func TestStorage_HangDoesNotKeepFromLeadingAgain(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	only := l.ready(0)
	only.running("web", "g1", "g2")
	at, hangs := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(hangs) })
	l.disk.OnOutcome(func(link func() error) error { close(at); <-hangs; return link() })
	go func() { _, _ = only.checkpoint("web") }()
	<-at
	_, heal := l.hang()
	defer heal()
	l.election.Depose()
	l.await("the cluster is free", func() bool {
		_, err := only.stopCluster("web")
		return err == nil
	})
	only.stop() // also while everything hangs
}

// TestStorage_HangsAtTheStart ends a coordinator that has never reached its
// repository.
func TestStorage_HangsAtTheStart(t *testing.T) {
	l := newLab(t, "n1")
	asked, heal := l.hang()
	defer heal()
	c := l.start(0)
	<-asked
	c.stop()
}

// TestStorage_HangHoldsNoCluster lets each call that reads the repository meet a
// file system that hangs. The caller gives up, and the cluster can be stopped.
func TestStorage_HangHoldsNoCluster(t *testing.T) {
	for name, call := range map[string]func(ctx context.Context, c *client) error{
		"checkpoint": func(ctx context.Context, c *client) error { _, err := c.checkpointCtx(ctx, "web"); return err },
		"rollback": func(ctx context.Context, c *client) error {
			_, err := follow(c.Restart(ctx, &api.RestartRequest{Cluster: "web", Rollback: true}))
			return err
		},
		"list": func(ctx context.Context, c *client) error {
			_, err := c.ListCheckpoints(ctx, &api.ListCheckpointsRequest{})
			return err
		},
		"verify": func(ctx context.Context, c *client) error {
			_, err := follow(c.VerifyCheckpoint(ctx, &api.VerifyCheckpointRequest{Id: "web@2"}))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "n1")
			c := l.ready(0)
			c.running("web", "a")
			c.mustCheckpoint("web")
			asked, heal := l.hang()
			defer heal()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- call(ctx, c) }()
			<-asked
			cancel()
			if err := <-ended; err == nil {
				t.Error("the call succeeded")
			}
			l.await("the cluster can be stopped", func() bool {
				_, err := c.stopCluster("web")
				if err != nil && !strings.Contains(err.Error(), "in progress") {
					t.Fatal(err)
				}
				return err == nil
			})
		})
	}
}
