package rounds_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/deploy"
	"fermata/coordinator/nodeconn"
	"fermata/coordinator/rounds"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is a ledger and a judge in memory, which fail as told.
type book struct {
	mu      sync.Mutex
	phases  []round.Phase // guarded by mu; stored, in order
	deleted bool          // guarded by mu
	aside   bool          // guarded by mu
	outcome round.Outcome // guarded by mu
	puts    []error       // guarded by mu; what the next puts meet
	commits []error       // guarded by mu; what the next commits meet
	done    bool          // guarded by mu; a failing commit is written all the same
}

func (b *book) PutRound(_ context.Context, r round.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.puts) > 0 {
		var err error
		if err, b.puts = b.puts[0], b.puts[1:]; err != nil {
			return err
		}
	}
	b.phases = append(b.phases, r.Phase)
	return nil
}

func (b *book) EndRound(_ context.Context, r round.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deleted, b.aside = true, r.Unsettled()
	return nil
}

func (b *book) Commit(_ context.Context, e rounds.Evidence) (round.Outcome, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(e.Images) != 1 || e.Resumed.IsZero() {
		return round.OutcomeNone, errors.New("commit without evidence")
	}
	if len(b.commits) > 0 {
		err := b.commits[0]
		b.commits = b.commits[1:]
		if b.done {
			b.outcome = round.Committed
		}
		return round.OutcomeNone, err
	}
	return b.decide(round.Committed)
}

func (b *book) Abort(context.Context, string) (round.Outcome, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.decide(round.Aborted)
}

// decide keeps the first outcome.
//
// Preconditions: mu is held.
func (b *book) decide(o round.Outcome) (round.Outcome, error) {
	if b.outcome == round.OutcomeNone {
		b.outcome = o
	}
	return b.outcome, nil
}

// field is one agent with one running guest, and a driver.
type field struct {
	agent  *coordinatortest.Agent
	driver *rounds.Driver
	job    rounds.Job

	deployer *deploy.Deployer
}

func newField(t *testing.T, b *book) *field {
	t.Helper()
	return newFieldWith(t, b, rounds.Config{})
}

// newFieldWith is newField with some of a driver's configuration.
func newFieldWith(t *testing.T, b *book, cfg rounds.Config) *field {
	t.Helper()
	dir, err := os.MkdirTemp("", "field") // socket paths are short (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	repo := repository.Config{Dir: filepath.Join(dir, "r"), FS: &coordinatortest.Disk{}}
	if _, err := repository.Create(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "n1.sock")
	a, err := coordinatortest.New(t.Context(), coordinatortest.Config{Name: "n1", Repository: repo, MemoryBytes: 1 << 30, Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	pool := nodeconn.New(nil)
	const d = 2 * time.Second
	cfg.Nodes, cfg.Prepare, cfg.Cut, cfg.Persist, cfg.Finish, cfg.Logger = pool, d, d, d, d, hclog.NewNullLogger()
	driver, err := rounds.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		driver.Wait()
		if err := errors.Join(pool.Close()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, text := range a.Broken() {
			t.Error("promise broken:", text)
		}
	})
	node := deploy.Node{Name: "n1", Address: "unix:" + socket}
	deployer, err := deploy.New(deploy.Config{Nodes: pool, Describe: d, Create: d, Release: d, Destroy: d, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	life := deploy.Life{Cluster: "c", Epoch: 1, Fence: &api.Fence{Token: 1, Store: 1}}
	parts := []deploy.Part{{Node: node, Guests: []*api.GuestSpec{{Name: "a", MemoryBytes: 1 << 20}}}}
	if _, err := deployer.Create(t.Context(), life, parts, func(*api.Event) {}); err != nil {
		t.Fatal(err)
	}
	if err := deployer.Release(t.Context(), life, []deploy.Node{node}); err != nil {
		t.Fatal(err)
	}
	return &field{agent: a, driver: driver, deployer: deployer, job: rounds.Job{
		Round: round.ID{Cluster: "c", Epoch: 2}, Fence: life.Fence, Members: []deploy.Node{node},
		Options:    round.Options{PauseBudget: time.Second, SkewBudget: time.Second},
		CheckImage: func(*api.NodeImage) error { return nil },
		Ledger:     b, Judge: b, Progress: func(*api.Event) {},
	}}
}

func TestRun_StoresEachPhaseBeforeItActs(t *testing.T) {
	b := &book{}
	f := newField(t, b)
	if err := f.driver.Run(t.Context(), t.Context(), f.job); err != nil {
		t.Fatal(err)
	}
	want := []round.Phase{round.PhasePrepare, round.PhaseCut, round.PhasePersist, round.PhaseCommit, round.PhaseFinish}
	if !slices.Equal(b.phases, want) || !b.deleted {
		t.Errorf("stored %v, deleted %v, want %v and deleted", b.phases, b.deleted, want)
	}
}

func TestRun_StoreFailsForAWhile(t *testing.T) {
	lost := fault.New(fault.Unavailable, "etcd elects")
	b := &book{puts: []error{lost, nil, lost, lost}}
	f := newField(t, b)
	if err := f.driver.Run(t.Context(), t.Context(), f.job); err != nil {
		t.Fatal(err)
	}
	if f.agent.Calls(coordinatortest.Cut) != 1 {
		t.Errorf("%d cuts, want 1", f.agent.Calls(coordinatortest.Cut))
	}
}

func TestRun_StoreSaysFenced(t *testing.T) {
	b := &book{puts: []error{nil, fault.New(fault.Stale, "another leads")}}
	f := newField(t, b)
	err := f.driver.Run(t.Context(), t.Context(), f.job)
	if fault.ClassOf(err) != fault.Unknown {
		t.Errorf("Run = %v (%v), want an unknown outcome", err, fault.ClassOf(err))
	}
	if n := f.agent.Calls(coordinatortest.Cut); n != 0 || b.outcome != round.OutcomeNone || b.deleted {
		t.Errorf("a fenced driver made %d cuts, decided %v, deleted %v", n, b.outcome, b.deleted)
	}
}

// TestRun_CommitThatFails asks a repository that may have taken a commit what
// became of it, and needs nothing of one that surely did not take it.
func TestRun_CommitThatFails(t *testing.T) {
	full := fault.New(fault.NoSpace, "full")
	for _, tc := range []struct {
		name     string
		err      error
		done     bool
		want     fault.Class
		recorded round.Outcome
		aside    bool
	}{
		{"refused", full, false, fault.NoSpace, round.OutcomeNone, true},
		{"lost and not written", fmt.Errorf("%w: %w", rounds.ErrUnheard, full), false, fault.NoSpace, round.Aborted, false},
		{"written all the same", fmt.Errorf("%w: %w", rounds.ErrUnheard, full), true, fault.None, round.Committed, false},
		{"refused for a reason that passes", fault.New(fault.Unavailable, "failing over"), false, fault.None, round.Committed, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &book{commits: []error{tc.err}, done: tc.done}
			f := newField(t, b)
			if err := f.driver.Run(t.Context(), t.Context(), f.job); fault.ClassOf(err) != tc.want {
				t.Errorf("Run = %v (%v), want %v", err, fault.ClassOf(err), tc.want)
			}
			if b.outcome != tc.recorded || b.aside != tc.aside {
				t.Errorf("the repository holds %v, set aside %t; want %v, %t", b.outcome, b.aside, tc.recorded, tc.aside)
			}
			if committed, told := f.agent.Outcome("c", 2); !told || committed != (tc.want == fault.None) {
				t.Errorf("the node was told committed=%v, told=%v", committed, told)
			}
		})
	}
}

func TestRecover_AbortsWhatWasNotCommitted(t *testing.T) {
	for _, tc := range []struct {
		phase    round.Phase
		recorded round.Outcome // before
		want     round.Outcome
		aside    bool
	}{
		{round.PhaseCut, round.OutcomeNone, round.Aborted, true},
		{round.PhaseCommit, round.OutcomeNone, round.Aborted, false},
		{round.PhaseCommit, round.Committed, round.Committed, false},
	} {
		t.Run(fmt.Sprintf("%s/%s", tc.phase, tc.recorded), func(t *testing.T) {
			b := &book{outcome: tc.recorded}
			f := newField(t, b)
			rec := round.Record{Round: f.job.Round, Token: 1, Members: []round.NodeID{"n1"}, Options: f.job.Options, Phase: tc.phase}
			f.job.Fence = &api.Fence{Token: 2, Store: 1}
			if tc.recorded == round.Committed {
				// A node whose image is committed has persisted it.
				f.persisted(t)
			}
			got, err := f.driver.Recover(t.Context(), rec, f.job)
			if err != nil || got != tc.want || !b.deleted || b.aside != tc.aside {
				t.Errorf("Recover = %v, %v, deleted %v, set aside %v, want %+v", got, err, b.deleted, b.aside, tc)
			}
			if committed, told := f.agent.Outcome("c", 2); !told || committed != (tc.want == round.Committed) {
				t.Errorf("the node was told committed=%v, told=%v", committed, told)
			}
		})
	}
}

// persisted takes the node as far as its image, as the lost coordinator did.
func (f *field) persisted(t *testing.T) {
	t.Helper()
	job := f.job
	job.Fence = &api.Fence{Token: 1, Store: 1}
	b := &book{puts: []error{nil, nil, nil, fault.New(fault.Stale, "another leads")}} // at the commit
	job.Ledger, job.Judge = b, b
	if err := f.driver.Run(t.Context(), t.Context(), job); fault.ClassOf(err) != fault.Unknown {
		t.Fatal(err)
	}
}
