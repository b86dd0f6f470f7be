// Package leader elects the one coordinator that acts, through etcd.
//
// Leadership is a lease: it is lost when the lease cannot be renewed, and the
// leader may learn of that late. Nothing relies on its learning: every write is
// fenced (package store), and agents refuse an older fence.
package leader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"fermata/coordinator/store"
	"fermata/coordinator/store/etcdstore"
	"fermata/protocol/fault"
)

// Config holds what a Candidate needs.
type Config struct {
	Client  *clientv3.Client // required; the caller closes it
	Prefix  string           // of the store's keys, as in etcdstore.Config
	Address string           // required: where operators and agents reach this coordinator
	TTL     time.Duration    // of the lease; whole seconds. Default 10s
	Logger  hclog.Logger     // optional: discards when nil
}

const (
	defaultTTL = 10 * time.Second
	// maxAddress bounds what one coordinator makes the others read.
	maxAddress = 512
	// retryPause spaces campaigns that met an error, such as no etcd.
	retryPause = time.Second
	// returnGrace is how long a leader whose time is over may take to return
	// before the lease is given back under it. Nothing it still does can do harm:
	// its writes are fenced.
	returnGrace = 5 * time.Second
	// resignTimeout bounds the revocation of the lease at the end; what is not
	// revoked in time runs out.
	resignTimeout = 2 * time.Second
	// readTimeout bounds the question who leads.
	readTimeout = 5 * time.Second
	// requestTimeout bounds a request of a campaign. Without one the client waits for
	// an etcd that does not answer for ever, and nobody learns of it.
	requestTimeout = 5 * time.Second
	// complainEvery spaces log lines about an etcd that stays away.
	complainEvery = 30 * time.Second
)

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Client == nil {
		errs = append(errs, errors.New("client: missing"))
	}
	if c.Address == "" || len(c.Address) > maxAddress {
		errs = append(errs, fmt.Errorf("address: %d bytes, want 1 to %d", len(c.Address), maxAddress))
	}
	if c.TTL < 0 || c.TTL%time.Second != 0 {
		errs = append(errs, fmt.Errorf("ttl: %s is not a number of seconds", c.TTL))
	}
	return errors.Join(errs...)
}

// Candidate takes part in the election.
type Candidate struct {
	cfg    Config       // immutable
	logger hclog.Logger // immutable
}

// New checks the configuration. Nothing is asked of etcd yet.
func New(cfg Config) (*Candidate, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure election: %w", err)
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Candidate{cfg: cfg, logger: cfg.Logger}, nil
}

// ErrLost is the cause of the leader's context when leadership is lost.
var ErrLost = errors.New("leadership is lost")

// ErrNoLeader says that nobody leads at the moment. Class unavailable.
var ErrNoLeader = errors.New("no coordinator leads")

// Run campaigns, calls lead each time it is elected, and campaigns again when
// leadership was lost. lead's context ends with cause ErrLost at that moment;
// only when lead has returned may this process be elected again. Run returns
// when ctx ends, or with lead's result when lead returns as the leader. It
// resigns before it returns, so that the next leader need not wait for the
// lease to run out; a lead that does not return in time does not delay that.
func (c *Candidate) Run(ctx context.Context, lead func(ctx context.Context, f store.Fence) error) error {
	var complained time.Time
	for {
		t, err := c.campaign(ctx)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), t.end(ctx))
		}
		if err != nil {
			if time.Since(complained) >= complainEvery {
				c.complain(ctx, err)
				complained = time.Now()
			}
			if err := pause(ctx, retryPause); err != nil {
				return err
			}
			continue
		}
		c.logger.Info("elected", "fence", t.fence.Token)
		err = t.serve(ctx, lead, c.logger)
		// A refused write is how a leader often learns it first.
		lost := ctx.Err() == nil && (t.lost.Err() != nil || errors.Is(err, store.ErrFenced))
		endErr := t.end(ctx)
		if !lost {
			return errors.Join(err, endErr)
		}
		c.logger.Warn("leadership is lost", "fence", t.fence.Token, "error", err)
	}
}

// complain says what keeps this candidate out of the election, and where it looked.
func (c *Candidate) complain(ctx context.Context, err error) {
	args := []any{"error", err}
	if class := fault.ClassOf(err); class == fault.Unavailable || class == fault.Deadline {
		args = append(args, "endpoints", etcdstore.Reach(ctx, c.cfg.Client.Endpoints()))
	}
	c.logger.Warn("cannot take part in the election, trying again", args...)
}

// term is one leadership.
type term struct {
	client  *clientv3.Client     // immutable
	session *concurrency.Session // immutable
	fence   store.Fence          // immutable
	lost    context.Context      // ends when leadership is lost
	cancel  context.CancelFunc   // ends lost and the renewal of the lease
	ended   bool                 // the lease was given back
}

// campaign waits until this candidate leads. On error nothing is left behind,
// or a lease that runs out; t is nil.
func (c *Candidate) campaign(ctx context.Context) (t *term, err error) {
	asking, cancelAsking := context.WithTimeout(ctx, requestTimeout)
	defer cancelAsking()
	id, err := etcdstore.Identity(asking, c.cfg.Client, c.cfg.Prefix)
	if err != nil {
		return nil, err
	}
	granted, err := c.cfg.Client.Grant(asking, int64(c.cfg.TTL/time.Second))
	if err != nil {
		return nil, fmt.Errorf("ask for a lease: %w", etcdstore.Explain(c.cfg.Client.Endpoints(), err))
	}
	// The lease must outlive ctx until it is revoked.
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t = &term{client: c.cfg.Client, cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.end(ctx))
			t = nil
		}
	}()
	t.session, err = concurrency.NewSession(c.cfg.Client, concurrency.WithLease(granted.ID), concurrency.WithContext(alive))
	if err == nil && t.session == nil {
		err = errors.New("client is closed") // what a session without an error means
	}
	if err != nil {
		return t, fmt.Errorf("renew the lease: %w", err)
	}
	t.lost = t.session.Ctx()
	// A candidate whose lease has run out would wait for ever.
	campaigning, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(t.lost, func() { stop(ErrLost) })()
	election := concurrency.NewElection(t.session, etcdstore.ElectionPrefix(c.cfg.Prefix))
	if err := election.Campaign(campaigning, c.cfg.Address); err != nil {
		return t, fmt.Errorf("campaign: %w", etcdstore.Explain(c.cfg.Client.Endpoints(), err))
	}
	t.fence = store.Fence{Key: election.Key(), Token: uint64(election.Rev()), Store: id}
	return t, nil
}

// serve runs lead until it returns, with a context that ends with leadership.
func (t *term) serve(ctx context.Context, lead func(context.Context, store.Fence) error, log hclog.Logger) error {
	leading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(t.lost, func() { stop(ErrLost) })()
	// Somebody may have removed the key and left the lease alone.
	watching, unwatch := context.WithCancel(leading)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.awaitRemoval(watching)
		if watching.Err() == nil {
			t.cancel()
		}
	}()
	defer func() {
		unwatch()
		<-watched
	}()
	returned := make(chan error, 1)
	go func() { returned <- lead(leading, t.fence) }()
	select {
	case err := <-returned:
		return err
	case <-leading.Done():
	}
	late := time.NewTimer(returnGrace)
	defer late.Stop()
	select {
	case err := <-returned:
		return err
	case <-late.C:
	}
	log.Warn("the leader's work does not end; another coordinator may lead from now on", "fence", t.fence.Token)
	if err := t.end(ctx); err != nil {
		log.Warn("lease not given back", "error", err)
	}
	return <-returned
}

// awaitRemoval returns when the leader's key is gone or ctx has ended. When
// etcd does not answer it keeps asking: that the lease runs out is told by
// the session.
func (t *term) awaitRemoval(ctx context.Context) {
	for {
		if resp, err := t.client.Get(ctx, t.fence.Key); err == nil {
			if len(resp.Kvs) == 0 || uint64(resp.Kvs[0].CreateRevision) != t.fence.Token {
				return
			}
			if t.watchRemoval(ctx, resp.Header.Revision+1) {
				return
			}
		}
		if pause(ctx, retryPause) != nil {
			return
		}
	}
}

// watchRemoval returns true at the first removal since revision, and false when
// it cannot watch any longer.
func (t *term) watchRemoval(ctx context.Context, revision int64) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range t.client.Watch(ctx, t.fence.Key, clientv3.WithRev(revision), clientv3.WithFilterPut()) {
		if len(resp.Events) > 0 {
			return true
		}
		if resp.Err() != nil {
			return false
		}
	}
	return false
}

// end gives the lease back, and with it the leader's key.
func (t *term) end(ctx context.Context) error {
	if t == nil || t.ended {
		return nil
	}
	t.ended = true
	defer t.cancel()
	if t.session == nil {
		return nil
	}
	held := t.lost.Err() == nil
	t.session.Orphan()
	if !held {
		return nil // nothing to give back
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resignTimeout)
	defer cancel()
	if _, err := t.client.Revoke(ctx, t.session.Lease()); err != nil {
		return fmt.Errorf("resign: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Leader is who leads.
type Leader struct {
	Address string
	Token   uint64 // of its fence
}

// Leader asks who leads. ErrNoLeader between two leaderships.
func (c *Candidate) Leader(ctx context.Context) (Leader, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	resp, err := c.cfg.Client.Get(ctx, etcdstore.ElectionPrefix(c.cfg.Prefix)+"/", clientv3.WithFirstCreate()...)
	if err != nil {
		return Leader{}, fmt.Errorf("ask who leads: %w", etcdstore.Explain(c.cfg.Client.Endpoints(), err))
	}
	if len(resp.Kvs) == 0 {
		return Leader{}, fault.Wrap(fault.Unavailable, ErrNoLeader, "")
	}
	return Leader{Address: string(resp.Kvs[0].Value), Token: uint64(resp.Kvs[0].CreateRevision)}, nil
}
