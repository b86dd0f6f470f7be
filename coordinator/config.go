package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/coordinator/store"
	"fermata/imageio/repository"
	"fermata/protocol/address"
	"fermata/protocol/identity"
)

// Config holds what a Coordinator needs. The zero value of an optional field
// selects the default written beside it.
type Config struct {
	// Listen are the addresses of the Operator and Registry services: host:port
	// or unix:PATH. Required, one at least.
	Listen []string
	// Advertise is the address that other coordinators tell callers while this
	// one leads. Default: the first of Listen that is host:port, else the first. This
	// machine's name stands for an address such as 0.0.0.0, which nobody can dial.
	Advertise string

	Identity  *identity.Identity // required unless Plaintext
	Plaintext bool               // no TLS; loopback addresses and unix sockets only

	// Etcd keeps what the coordinator must not forget, and elects who leads.
	// Required unless State is given.
	Etcd Etcd
	// State takes the place of Etcd.
	State *State

	// Repository says where checkpoints are. Dir is required, and must be a repository.
	Repository repository.Config

	// Writers is how many nodes write checkpoints to the repository at a time, of all
	// clusters together. Default 0: as many as there are.
	Writers int

	// NodeLeaseTTL is how long a node counts as alive after it last spoke.
	// Default 10s.
	NodeLeaseTTL time.Duration
	Timeouts     Timeouts

	// ShutdownGrace is how long calls under way may take when Run's context
	// ends; rounds are aborted then, and their guests run on. Default 10s.
	ShutdownGrace time.Duration

	Logger hclog.Logger // default: discards
}

// State is the coordinator's memory and the election over it.
type State struct {
	Store   store.Store
	Elector Elector
}

// Elector decides who leads.
type Elector interface {
	// Run takes part in the election until ctx ends. Each time this coordinator
	// is elected it calls lead, whose context ends when it is deposed; when lead
	// returns, the leadership is given up.
	Run(ctx context.Context, lead func(ctx context.Context, f store.Fence) error) error
	// Leader returns the address that the present leader advertises.
	Leader(ctx context.Context) (address string, err error)
}

// minLeaseTTL is the shortest lease that etcd can measure, and leaves an agent
// that repeats itself every third of it time to do so.
const minLeaseTTL = time.Second

func (c *Config) applyDefaults() {
	if c.NodeLeaseTTL == 0 {
		c.NodeLeaseTTL = 10 * time.Second
	}
	if c.ShutdownGrace == 0 {
		c.ShutdownGrace = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.Timeouts.applyDefaults()
}

// Validate reports every problem at once.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("listen: missing"))
	}
	for _, a := range c.Listen {
		if err := address.Check(a); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
			continue
		}
		if c.Plaintext {
			if err := identity.PlaintextAllowed(a); err != nil {
				errs = append(errs, fmt.Errorf("listen: %w", err))
			}
		}
	}
	if c.Advertise != "" {
		if err := address.CheckDialled(c.Advertise); err != nil {
			errs = append(errs, fmt.Errorf("advertise: %w", err))
		}
	}
	switch {
	case c.Plaintext && c.Identity != nil:
		errs = append(errs, errors.New("certificate: given, but plain text asked for"))
	case c.Identity == nil && !c.Plaintext:
		errs = append(errs, errors.New("certificate: missing (or ask for plain text on loopback)"))
	case c.Identity != nil && c.Identity.Peer().Role != identity.RoleCoordinator:
		errs = append(errs, fmt.Errorf("certificate: is for %s, want role %s", c.Identity.Peer(), identity.RoleCoordinator))
	}
	switch {
	case c.State != nil && c.Etcd.given():
		errs = append(errs, errors.New("etcd: given beside another state"))
	case c.State != nil && (c.State.Store == nil || c.State.Elector == nil):
		errs = append(errs, errors.New("state: store or elector missing"))
	case c.State == nil && !c.Etcd.given():
		errs = append(errs, errors.New("etcd: missing"))
	}
	errs = append(errs, c.Etcd.validate())
	if err := c.Repository.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("repository: %w", err))
	}
	if c.Writers < 0 {
		errs = append(errs, fmt.Errorf("writers: negative (%d)", c.Writers))
	}
	if c.NodeLeaseTTL != 0 && c.NodeLeaseTTL < minLeaseTTL {
		errs = append(errs, fmt.Errorf("node_lease_ttl: %s, at least %s", c.NodeLeaseTTL, minLeaseTTL))
	}
	if c.ShutdownGrace < 0 {
		errs = append(errs, fmt.Errorf("shutdown_grace: negative (%s)", c.ShutdownGrace))
	}
	errs = append(errs, c.Timeouts.validate())
	return errors.Join(errs...)
}
