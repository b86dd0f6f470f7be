package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/etcdembed"
	"fermata/coordinator/leader"
	"fermata/coordinator/store/etcdstore"
)

// Etcd says which etcd keeps the coordinator's state: one inside this process,
// for an installation on one machine, or a cluster of its own. Exactly one of
// Embedded and Endpoints is given.
type Etcd struct {
	Embedded  *etcdembed.Config
	Endpoints []string    // of a real etcd
	TLS       *tls.Config // for Endpoints; nil: plain text
	Username  string      // for Endpoints; empty: etcd asks for none
	Password  string      // of Username
	Prefix    string      // of all keys. Default /fermata
	// LeaderTTL is how long a leader that has died is waited for. Whole
	// seconds. Default 10s.
	LeaderTTL time.Duration
	// CompactAfter is the age from which the leader has a real etcd forget old
	// revisions; zero leaves that to etcd's own setting. Default 10m.
	CompactAfter *time.Duration
}

// defaultCompactAfter is far longer than any watch takes that was interrupted.
const defaultCompactAfter = 10 * time.Minute

// compactAfter is what the store is told. The embedded etcd compacts itself.
func (e *Etcd) compactAfter() time.Duration {
	switch {
	case e.Embedded != nil:
		return 0
	case e.CompactAfter == nil:
		return defaultCompactAfter
	}
	return *e.CompactAfter
}

func (e *Etcd) given() bool { return e.Embedded != nil || len(e.Endpoints) > 0 }

func (e *Etcd) validate() error {
	var errs []error
	if e.Embedded != nil && len(e.Endpoints) > 0 {
		errs = append(errs, errors.New("etcd: both embedded and endpoints given"))
	}
	if e.Embedded != nil {
		if err := e.Embedded.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("etcd: %w", err))
		}
	}
	for _, endpoint := range e.Endpoints {
		if err := checkEndpoint(endpoint, e.TLS != nil, e.Username != ""); err != nil {
			errs = append(errs, fmt.Errorf("etcd: %w", err))
		}
	}
	if (e.Username == "") != (e.Password == "") {
		errs = append(errs, errors.New("etcd: username and password_file: one is given without the other"))
	}
	if e.Username != "" && e.Embedded != nil {
		errs = append(errs, errors.New("etcd: username: the embedded etcd has no users"))
	}
	if e.CompactAfter != nil && *e.CompactAfter < 0 {
		errs = append(errs, fmt.Errorf("etcd: compact_after: negative (%s)", *e.CompactAfter))
	}
	if e.LeaderTTL < 0 || e.LeaderTTL%time.Second != 0 {
		errs = append(errs, fmt.Errorf("etcd: leader_ttl: %s is not a number of seconds", e.LeaderTTL))
	}
	return errors.Join(errs...)
}

// withState runs serve with the store and the election. What serve needs of
// etcd outlives ctx until serve returns, so that the end of ctx can be recorded.
func (c *Coordinator) withState(ctx context.Context, serve func(ctx context.Context) error) error {
	if !c.cfg.Etcd.given() {
		return serve(ctx)
	}
	if c.cfg.Etcd.Embedded != nil {
		return c.withEmbedded(ctx, serve)
	}
	client, err := c.connectEtcd(ctx)
	if err != nil {
		return err
	}
	// A client that is closed has nothing left to fail.
	defer func() { _ = client.Close() }()
	if err := c.useEtcd(client); err != nil {
		return err
	}
	return serve(ctx)
}

func (c *Coordinator) withEmbedded(ctx context.Context, serve func(ctx context.Context) error) error {
	cfg := *c.cfg.Etcd.Embedded
	if cfg.Logger == nil {
		cfg.Logger = c.log.Named("etcd")
	}
	server, err := etcdembed.New(cfg)
	if err != nil {
		return err
	}
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	starting := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	return server.Run(life, func(running context.Context, client *clientv3.Client) error {
		if !starting() {
			return context.Cause(ctx)
		}
		// The etcd was this coordinator's alone, which has just begun.
		if err := etcdstore.EndEarlier(ctx, client, c.cfg.Etcd.Prefix); err != nil {
			return err
		}
		if err := c.useEtcd(client); err != nil {
			return err
		}
		ctx, cancel := joined(ctx, running)
		defer cancel()
		return serve(ctx)
	})
}

// useEtcd keeps the state in this etcd.
func (c *Coordinator) useEtcd(client *clientv3.Client) error {
	st, err := etcdstore.New(etcdstore.Config{
		Client: client, Prefix: c.cfg.Etcd.Prefix, CompactAfter: c.cfg.Etcd.compactAfter(), Logger: c.log.Named("store"),
	})
	if err != nil {
		return err
	}
	candidate, err := leader.New(leader.Config{
		Client: client, Prefix: c.cfg.Etcd.Prefix, Address: c.advertised(), TTL: c.cfg.Etcd.LeaderTTL, Logger: c.log.Named("election"),
	})
	if err != nil {
		return err
	}
	c.store, c.elector = st, etcdElector{candidate}
	return nil
}

// etcdElector is an Elector in etcd.
type etcdElector struct{ *leader.Candidate }

// Leader implements Elector.
func (e etcdElector) Leader(ctx context.Context) (address string, err error) {
	l, err := e.Candidate.Leader(ctx)
	return l.Address, err
}
