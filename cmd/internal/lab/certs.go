package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/protocol/identity"
)

// renewEvery is how often a lab looks whether certificates are due. They are due 30
// days before they expire.
const renewEvery = 24 * time.Hour

// certificates are those of a lab, which has its own authority.
type certificates struct {
	dir   string
	nodes int
	log   hclog.Logger
}

// certificateOf is one of them, PREFIX.crt and PREFIX.key.
type certificateOf struct {
	prefix string
	req    identity.Request
}

func (c certificates) list() []certificateOf {
	out := []certificateOf{
		{"operator", identity.Request{Role: identity.RoleOperator, Name: "operator"}},
		{"coordinator", identity.Request{Role: identity.RoleCoordinator, Name: "coordinator", Hosts: []string{hubAddress().String()}}},
	}
	for i := range c.nodes {
		out = append(out, certificateOf{nodeName(i), identity.Request{Role: identity.RoleAgent, Name: nodeName(i)}})
	}
	return out
}

// make makes the certificates that are missing and renews those that are due, the
// authority's first.
func (c certificates) make() error {
	authority := filepath.Join(c.dir, identity.CACertFile)
	if _, err := os.Stat(authority); errors.Is(err, os.ErrNotExist) {
		if err := identity.CreateCA(c.dir, 0); err != nil {
			return err
		}
	}
	err := c.renewIfDue(authority, func() error { return identity.RenewAuthority(c.dir, 0) })
	if err != nil {
		return err
	}
	for _, cert := range c.list() {
		prefix := filepath.Join(c.dir, cert.prefix)
		if _, err := os.Stat(prefix + ".crt"); errors.Is(err, os.ErrNotExist) {
			// A key without its certificate is what an earlier lab left that was killed.
			cert.req.Replace = true
			if _, err := identity.Issue(c.dir, cert.req, prefix); err != nil {
				return err
			}
			continue
		}
		err := c.renewIfDue(prefix+".crt", func() error {
			_, err := identity.Renew(c.dir, prefix+".crt", 365*24*time.Hour)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c certificates) renewIfDue(path string, renew func() error) error {
	have, err := identity.ReadCertificate(path)
	if err != nil || !have.Due(time.Now()) {
		return err
	}
	if err := renew(); err != nil {
		return fmt.Errorf("renew certificate of the lab: %w", err)
	}
	c.log.Info("certificate was renewed", "file", path, "expired", have.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// keep renews the certificates while the lab runs, until the function that it returns
// is called. The daemons follow by themselves.
func (c certificates) keep(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		ticker := time.NewTicker(renewEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			if err := c.make(); err != nil {
				c.log.Error("certificates of the lab cannot be renewed", "error", err)
			}
		}
	})
	return func() { cancel(); keeping.Wait() }
}
