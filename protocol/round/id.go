package round

import (
	"fmt"
	"slices"
)

// NodeID names a node: one member of a round.
type NodeID string

// Epoch numbers the cuts of a cluster. It only grows; zero is before the first.
type Epoch uint64

// Token is a fencing token: the larger, the newer the coordinator.
type Token uint64

// ID names one round. It is the key by which every call is idempotent.
type ID struct {
	Cluster string
	Epoch   Epoch
}

// String returns CLUSTER@EPOCH, the name of the checkpoint the round makes.
func (id ID) String() string { return fmt.Sprintf("%s@%d", id.Cluster, id.Epoch) }

// checkMembers returns members sorted, or what is wrong with them.
func checkMembers(members []NodeID) ([]NodeID, error) {
	sorted := slices.Clone(members)
	slices.Sort(sorted)
	if len(sorted) == 0 {
		return nil, fmt.Errorf("round without members: %w", ErrInvalid)
	}
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) || sorted[0] == "" {
		return nil, fmt.Errorf("members %v: empty or twice: %w", members, ErrInvalid)
	}
	return sorted, nil
}
