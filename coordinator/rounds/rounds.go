// Package rounds carries out what the state machine round.Lead asks for: it
// calls the nodes, keeps the record of the round in the store, has the outcome
// decided in the repository and counts the time. What happens when is decided
// in package round alone.
//
// One goroutine owns the Lead (Run's). Calls, and the decision, run on
// goroutines of their own and hand a function to the owner, who runs it.
package rounds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/coordinator/deploy"
	"fermata/coordinator/nodeconn"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// tick is the unit of a Lead's budgets. It is also the pause before a call
// whose answer was lost is repeated.
const tick = 100 * time.Millisecond

// decideBudget is how long a round waits for a repository that does not say
// whether a commit was made. A round that has waited in vain is set aside, and
// settled when the repository answers again.
const decideBudget = time.Minute

// commitPatience is how long a commit is tried again that the repository has
// refused for a reason that may pass, as while it fails over.
const commitPatience = 30 * time.Second

// decidePause is how long the repository is left alone after it failed.
const decidePause = time.Second

// persistBudget bounds what a node may take to make its image durable even if
// it goes on reporting progress; what ends a stuck node is Config.Persist. No
// cluster whose image takes a day should be checkpointed this way.
const persistBudget = 24 * time.Hour

// unreachableBudget is how long a node may refuse connections before the round gives
// it up: longer than an agent takes to be started again.
const unreachableBudget = 5 * time.Second

// waitingEvery is how often the operator is told for whom a round waits.
const waitingEvery = 2 * time.Second

// Ledger keeps the record of the one round of a cluster that is in flight, for
// a successor to take over. Its errors of class stale mean that another
// coordinator leads now.
type Ledger interface {
	PutRound(ctx context.Context, r round.Record) error
	// EndRound forgets a round that is over, or sets it aside if it is unsettled.
	EndRound(ctx context.Context, r round.Record) error
}

// ErrUnheard says that the repository may hold the outcome that it was given, or
// may come to.
var ErrUnheard = errors.New("the repository may have recorded it")

// Judge has the outcome of one epoch recorded in the repository, exclusively:
// both methods return the outcome that the repository holds, whoever wrote it.
// Both end soon after ctx, whatever the repository does. An error without
// ErrUnheard means that nothing was recorded of it nor will be.
type Judge interface {
	Commit(ctx context.Context, e Evidence) (round.Outcome, error)
	Abort(ctx context.Context, reason string) (round.Outcome, error)
}

// Evidence is what a commit rests on.
type Evidence struct {
	Images  []*api.NodeImage // of every member, in the order of node names
	Resumed time.Time        // when the last guest ran again
}

// Config holds what a Driver needs. All fields but Writers are required.
type Config struct {
	Nodes *nodeconn.Pool

	Prepare time.Duration // until every node is ready
	Cut     time.Duration // until every guest runs again, beyond the pause budget
	Persist time.Duration // longest silence of a node that writes its image
	Finish  time.Duration // to tell the nodes the outcome

	// Writers is how many nodes, of all rounds together, write to the repository at a
	// time; 0: as many as there are. A node that waits for its turn holds what its
	// guests overwrite meanwhile in memory.
	Writers int
	// KeepAlive is how often such a node is told that the round goes on. Default:
	// round.KeepAlive.
	KeepAlive time.Duration

	Logger hclog.Logger
}

// Driver drives rounds.
//
// Concurrency: safe for use by several goroutines, one a round.
type Driver struct {
	cfg Config // immutable

	// turns holds a value for each node that writes. Nil: nobody waits for a turn.
	turns chan struct{}

	// decisions are the calls of the repository. They may outlive their round.
	decisions sync.WaitGroup
}

// New returns a Driver.
func New(cfg Config) (*Driver, error) {
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = round.KeepAlive
	}
	if cfg.Nodes == nil || cfg.Logger == nil || min(cfg.Prepare, cfg.Cut, cfg.Persist, cfg.Finish) <= 0 || cfg.Writers < 0 {
		return nil, errors.New("rounds: every field of the configuration is required")
	}
	d := &Driver{cfg: cfg}
	if cfg.Writers > 0 {
		d.turns = make(chan struct{}, cfg.Writers)
	}
	return d, nil
}

// takeTurn waits until the node may write, and returns what ends its turn. Meanwhile it
// calls alive again and again, and gives up if that fails.
func (d *Driver) takeTurn(ctx context.Context, alive func(context.Context) error) (end func(), err error) {
	if d.turns == nil {
		return func() {}, nil
	}
	if ctx.Err() != nil { // first, as select chooses freely
		return nil, context.Cause(ctx)
	}
	ticker := time.NewTicker(d.cfg.KeepAlive)
	defer ticker.Stop()
	for {
		select {
		case d.turns <- struct{}{}:
			return func() { <-d.turns }, nil
		case <-ticker.C:
			if err := alive(ctx); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Wait returns when no call of the repository is under way any more.
//
// Preconditions: no round is being driven, and none will be.
func (d *Driver) Wait() { d.decisions.Wait() }

// Job is one round.
type Job struct {
	Round   round.ID
	Fence   *api.Fence
	Members []deploy.Node
	Options round.Options

	// Lost tells why a node is believed dead, nil while it is not. Optional.
	Lost func(node string) error
	// CheckImage tells what is wrong with what a node wants to add to the
	// checkpoint.
	CheckImage func(*api.NodeImage) error
	Ledger     Ledger
	Judge      Judge
	Progress   func(*api.Event) // never called by two goroutines at once
}

func (d *Driver) budgets(o round.Options) round.Budgets {
	return round.Budgets{
		Prepare: ticks(d.cfg.Prepare),
		Cut:     ticks(d.cutBudget(o)),
		Persist: ticks(persistBudget),
		Decide:  ticks(decideBudget),
		Finish:  ticks(d.cfg.Finish),
	}
}

// cutBudget bounds the cut of all members: longer than each of them allows itself.
func (d *Driver) cutBudget(o round.Options) time.Duration { return d.cfg.Cut + o.CutBudget() }

func ticks(d time.Duration) int { return int(d/tick) + 1 }

// Run drives a new round to its end: committed, or an error that says why not
// and has the class of what was in the way. The end of asked aborts the round
// as long as that is possible. The end of ctx (this coordinator does not lead
// any more) leaves it to the successor; the outcome is then unknown here.
func (d *Driver) Run(ctx, asked context.Context, job Job) error {
	lead, err := round.NewLead(round.LeadConfig{
		Round: job.Round, Token: round.Token(job.Fence.GetToken()), Members: names(job.Members),
		Options: job.Options, Budgets: d.budgets(job.Options),
	})
	if err != nil {
		return fmt.Errorf("begin round %s: %w", job.Round, err)
	}
	lead.Begin()
	return d.drive(ctx, asked, lead, job)
}

// Recover drives a round that another coordinator left to its end and returns
// its outcome. job.Judge is asked for an abort only, and not for long: a
// cluster waits for it.
//
// On error: the outcome is not known. The round was set aside, unless this
// coordinator does not lead any more.
func (d *Driver) Recover(ctx context.Context, rec round.Record, job Job) (round.Outcome, error) {
	lead, err := round.RecoverLead(rec, round.Token(job.Fence.GetToken()), d.budgets(rec.Options))
	if err != nil {
		return round.OutcomeNone, fmt.Errorf("recover round %s: %w", rec.Round, err)
	}
	lead.Cancel("") // shortens the wait for a repository that does not answer
	run := d.newRun(lead, job)
	run.loop(ctx, context.WithoutCancel(ctx))
	if run.result.Outcome == round.OutcomeNone {
		return round.OutcomeNone, run.failure()
	}
	return run.result.Outcome, nil
}

// Tell tells the nodes of a round that is over how it ended, and waits for their
// answers. It tries once: a node that is not reached learns with its next round
// that this one is over.
func (d *Driver) Tell(ctx context.Context, job Job, outcome round.Outcome) {
	r := d.newRun(nil, job)
	var calls sync.WaitGroup
	for id, node := range r.nodes {
		calls.Go(func() {
			client, err := d.cfg.Nodes.Client(node.Name, node.Address)
			if err == nil {
				err = r.finish(ctx, client, round.Request{Call: round.CallFinish, Round: job.Round, To: id, Outcome: outcome})
			}
			if err != nil {
				r.log.Info("node not told how a round ended", "node", node.Name, "outcome", outcome, "error", err)
			}
		})
	}
	calls.Wait()
}

func (d *Driver) drive(ctx, asked context.Context, lead *round.Lead, job Job) error {
	run := d.newRun(lead, job)
	run.loop(ctx, asked)
	if run.result.Outcome == round.Committed {
		return nil
	}
	return run.failure()
}

func names(nodes []deploy.Node) []round.NodeID {
	ids := make([]round.NodeID, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, round.NodeID(n.Name))
	}
	return ids
}
