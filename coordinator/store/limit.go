package store

import (
	"cmp"
	"fmt"
	"regexp"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// Limits of what is stored. Together they keep the largest transaction, the
// creation of a cluster, below etcd's 1.5 MiB for one request.
const (
	MaxSpecBytes   = 1 << 20
	MaxPhaseBytes  = 256 << 10
	MaxNodeBytes   = 1 << 20
	MaxReasonBytes = 4 << 10
	MaxAssignments = 1024
)

// minTTL is the shortest life that every store can measure: leases of etcd
// last whole seconds.
const minTTL = time.Second

// nameForm is what may be part of a key.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// CheckName refuses what cannot name a cluster, a node or an operation.
func CheckName(what, name string) error {
	if !nameForm.MatchString(name) {
		return invalid("%s %q: 1 to 63 letters, digits, dots, dashes or underscores are a name", what, name)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fault.Wrap(fault.Invalid, ErrInvalid, format, args...)
}

// Validate reports the first thing that cannot be stored. Implementations call
// it before every write.
func (c *Cluster) Validate() error {
	if err := CheckName("cluster", c.Name); err != nil {
		return err
	}
	if _, known := api.ClusterState_name[int32(c.State)]; !known || c.State == api.ClusterState_CLUSTER_STATE_UNSPECIFIED {
		return invalid("cluster %s: state %v", c.Name, c.State)
	}
	switch {
	case len(c.Spec) > MaxSpecBytes:
		return tooLarge("specification of cluster "+c.Name, len(c.Spec), MaxSpecBytes)
	case len(c.Reason) > MaxReasonBytes:
		return tooLarge("reason of cluster "+c.Name, len(c.Reason), MaxReasonBytes)
	case len(c.Assignments) > MaxAssignments:
		return invalid("cluster %s: %d assignments, at most %d", c.Name, len(c.Assignments), MaxAssignments)
	}
	for guest, node := range c.Assignments {
		if err := CheckName("guest", guest); err != nil {
			return err
		}
		if err := CheckName("node", node); err != nil {
			return err
		}
	}
	return nil
}

// Validate reports the first thing that cannot be stored.
func (o *Operation) Validate() error {
	if err := CheckName("cluster", o.Cluster); err != nil {
		return err
	}
	if err := CheckName("operation", o.ID); err != nil {
		return err
	}
	switch o.Kind {
	case Start, Stop, Restart, Checkpoint:
	default:
		return invalid("operation %s: kind %q", o.ID, o.Kind)
	}
	return CheckPhase(o.ID, o.Phase)
}

// maxEpoch leaves room for every increment that can ever happen.
const maxEpoch = 1 << 62

// CheckEpoch refuses an epoch so large that epochs could not grow any more.
func CheckEpoch(cluster string, epoch uint64) error {
	if epoch > maxEpoch {
		return invalid("epoch %d of cluster %s", epoch, cluster)
	}
	return nil
}

// CheckPhase refuses a phase record that is too large.
func CheckPhase(id string, phase []byte) error {
	if len(phase) > MaxPhaseBytes {
		return tooLarge("phase of operation "+id, len(phase), MaxPhaseBytes)
	}
	return nil
}

// CheckAside refuses to set an operation aside that could not be found again.
func CheckAside(op Operation) error {
	if op.Epoch == 0 {
		return fault.Wrap(fault.Invalid, ErrInvalid, "set %s of cluster %s aside: it has no epoch", op.Kind, op.Cluster)
	}
	return nil
}

// CompareAside orders operations that were set aside.
func CompareAside(a, b Operation) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Epoch, b.Epoch))
}

// CheckNode refuses what cannot be stored of a node.
func CheckNode(info *api.NodeInfo, ttl time.Duration) error {
	if err := CheckName("node", info.GetName()); err != nil {
		return err
	}
	if ttl < minTTL {
		return invalid("node %s: lease of %s, at least %s", info.GetName(), ttl, minTTL)
	}
	if n := proto.Size(info); n > MaxNodeBytes {
		return tooLarge("description of node "+info.GetName(), n, MaxNodeBytes)
	}
	return nil
}

func tooLarge(what string, got, limit int) error {
	return invalid("%s of %d bytes, at most %d", what, got, limit)
}

// Fenced is the refusal of a deposed leader.
func Fenced(f Fence) error {
	return fault.Wrap(fault.Stale, ErrFenced, "fence %d of store %x", f.Token, f.Store)
}

// Busy is the refusal because of running.
func Busy(running Operation) error {
	return fault.Wrap(fault.Busy, ErrBusy, "cluster %s: %s since %s", running.Cluster, running.Kind, running.Started.UTC().Format(time.RFC3339))
}

// Missing is what a name of somebody's names nothing. It is ErrNotFound.
type Missing struct{ What, Name string }

func (m *Missing) Error() string { return fmt.Sprintf("%s %s: %s", m.What, m.Name, ErrNotFound) }

// Unwrap makes it ErrNotFound.
func (m *Missing) Unwrap() error { return ErrNotFound }

// NotFound is the refusal because what names nothing. Find the Missing with errors.As.
func NotFound(what, name string) error {
	return fault.Wrap(fault.NotFound, &Missing{what, name}, "")
}

// Exists is the refusal because what is there already.
func Exists(what, name string) error {
	return fault.Wrap(fault.Exists, ErrExists, "%s %s", what, name)
}

// Corrupt is the report of a record that cannot be read.
func Corrupt(key string, cause error) error {
	return fault.Wrap(fault.Corrupt, fmt.Errorf("%w: %w", ErrCorrupt, cause), "read %s", key)
}
