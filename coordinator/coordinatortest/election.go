package coordinatortest

import (
	"context"
	"errors"
	"sync"

	"fermata/coordinator/store"
	"fermata/coordinator/store/memstore"
)

// Election is an election in memory: its candidates lead in the order in which
// they came, and a test decides when a leader goes.
//
// Concurrency: safe for use by several goroutines.
type Election struct {
	store *memstore.Store
	turn  chan struct{} // holds one token: who has it leads

	mu     sync.Mutex
	leader string                  // guarded by mu; address
	depose context.CancelCauseFunc // guarded by mu
}

// NewElection makes an election over s.
func NewElection(s *memstore.Store) *Election {
	e := &Election{store: s, turn: make(chan struct{}, 1)}
	e.turn <- struct{}{}
	return e
}

// errDeposed is why a leader's context ends.
var errDeposed = errors.New("the test has deposed the leader")

// Depose ends the present leader's term and lets the next candidate lead.
func (e *Election) Depose() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.depose != nil {
		e.depose(errDeposed)
	}
}

// Usurp makes the present leader's fence worthless without telling it.
func (e *Election) Usurp() store.Fence { return e.store.Elect() }

// Candidate is one coordinator's part of an Election.
type Candidate struct {
	Election *Election
	Address  string
}

// Run takes part in the election until ctx ends.
func (c Candidate) Run(ctx context.Context, lead func(ctx context.Context, f store.Fence) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.Election.turn:
		}
		err := c.term(ctx, lead)
		c.Election.turn <- struct{}{}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

func (c Candidate) term(ctx context.Context, lead func(ctx context.Context, f store.Fence) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.Election.mu.Lock()
	c.Election.leader, c.Election.depose = c.Address, cancel
	c.Election.mu.Unlock()
	return lead(ctx, c.Election.store.Elect())
}

// Leader returns the address of the present leader.
func (c Candidate) Leader(context.Context) (string, error) {
	c.Election.mu.Lock()
	defer c.Election.mu.Unlock()
	return c.Election.leader, nil
}
