// Package etcdstore is the store.Store in etcd, from version 3.4 on.
//
// Keys, below the prefix:
//
//	store              identity of the store, hexadecimal
//	etcd               the etcd cluster's own, hexadecimal: another one was restored
//	leader/LEASE       the election (package leader)
//	clusters/NAME      JSON record of a cluster
//	specs/NAME         its specification, YAML
//	epochs/NAME        last epoch used, decimal; stays when the cluster goes
//	operations/NAME    JSON record of the operation on a cluster
//	unsettled/NAME/EPOCH  JSON record of an operation that was set aside
//	nodes/NAME         JSON record of what a node said of itself
//	alive/NAME         empty, under the node's lease
//
// A heartbeat renews the lease and writes nothing, unless the node has news: etcd
// keeps every revision until somebody compacts it, and what is idle must not grow.
//
// Every write is one transaction that compares the leader's key with the fence,
// and each record it was computed from with what was read. Every read is
// linearizable.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
	"fermata/protocol/fault"
)

const (
	defaultPrefix  = "/fermata"
	defaultTimeout = 5 * time.Second // a leader change of etcd takes 1 to 2 s

	// maxAttempts bounds how often a write is computed anew because a record
	// changed between reading and writing. Only goroutines of one leader
	// compete, a handful.
	maxAttempts = 16
)

// Config holds what a Store needs.
type Config struct {
	Client  *clientv3.Client // required; the caller closes it
	Prefix  string           // default /fermata; a path without a slash at the end
	Timeout time.Duration    // of one request to etcd. Default 5s
	Now     func() time.Time // optional: time.Now when nil; stamps nodes

	// CompactAfter is the age from which the leader has etcd forget old revisions.
	// Nothing reads them but watches that were interrupted, for seconds. Zero leaves
	// that to etcd's own setting, and the leader warns when it sees no effect.
	CompactAfter time.Duration
	Logger       hclog.Logger // optional: discards when nil
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Client == nil {
		errs = append(errs, errors.New("client: missing"))
	}
	if err := checkPrefix(c.Prefix); err != nil {
		errs = append(errs, err)
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout: negative (%s)", c.Timeout))
	}
	if c.CompactAfter < 0 {
		errs = append(errs, fmt.Errorf("compact_after: negative (%s)", c.CompactAfter))
	}
	return errors.Join(errs...)
}

// Store keeps the coordinator's state in etcd.
type Store struct {
	client  *clientv3.Client // immutable
	keys    keys             // immutable
	timeout time.Duration    // immutable
	now     func() time.Time // immutable
	log     hclog.Logger     // immutable

	history history // of the store's revisions

	mu    sync.Mutex
	heard map[string]heard // guarded by mu; by node
}

var _ store.Store = (*Store)(nil)

// New returns the store in an etcd. It does not talk to it.
func New(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure store: %w", err)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Store{
		client: cfg.Client, keys: keysBelow(cfg.Prefix), timeout: cfg.Timeout, now: cfg.Now, log: cfg.Logger,
		history: history{compactAfter: cfg.CompactAfter}, heard: map[string]heard{},
	}, nil
}

// records are what was read of the keys a write depends on; a key without a
// value is absent.
type records map[string]*mvccpb.KeyValue

// update makes one write: it reads keys, has decide compute the operations,
// and commits them if neither the leader nor any of the records has changed.
// No operations mean that there is nothing to write.
func (s *Store) update(ctx context.Context, f store.Fence, what string, keys []string, decide func(records) ([]clientv3.Op, error)) error {
	if f.Key == "" || f.Token == 0 {
		return store.Fenced(f)
	}
	for range maxAttempts {
		found, err := s.readFenced(ctx, f, what, keys)
		if err != nil {
			return err
		}
		ops, err := decide(found)
		if err != nil || len(ops) == 0 {
			return err
		}
		conditions := s.holds(f)
		for _, key := range keys {
			var revision int64 // zero: the key is absent
			if kv := found[key]; kv != nil {
				revision = kv.ModRevision
			}
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
		}
		resp, err := s.transact(ctx, conditions, ops...)
		if err != nil {
			return s.writeError(err, what)
		}
		if resp.Succeeded {
			return nil
		}
	}
	return fault.Wrap(fault.Busy, store.ErrConflict, "%s", what)
}

// readFenced reads keys at one revision at which f held.
func (s *Store) readFenced(ctx context.Context, f store.Fence, what string, keys []string) (records, error) {
	gets := make([]clientv3.Op, 0, len(keys))
	for _, key := range keys {
		gets = append(gets, clientv3.OpGet(key))
	}
	resp, err := s.transact(ctx, s.holds(f), gets...)
	if err != nil {
		return nil, s.readError(err, what)
	}
	if !resp.Succeeded {
		return nil, store.Fenced(f)
	}
	found := make(records, len(keys))
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			found[string(kv.Key)] = kv
		}
	}
	return found, nil
}

// holds is the condition that f is the fence of the present leader of the
// store that elected it.
func (s *Store) holds(f store.Fence) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(f.Key), "=", int64(f.Token)),
		clientv3.Compare(clientv3.Value(s.keys.identity), "=", formatIdentity(f.Store)),
	}
}

// transact commits one transaction. It has a deadline of its own: without one
// the client waits for an unreachable etcd for ever.
func (s *Store) transact(ctx context.Context, conditions []clientv3.Cmp, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
}
