package coordinator

import (
	"context"
	"encoding/json"
	"fmt"

	"fermata/coordinator/rounds"
	"fermata/coordinator/store"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// ledger keeps the record of a round as the phase of the cluster's operation.
type ledger struct {
	store store.Store // immutable
	fence store.Fence // immutable
	id    string      // of the operation; immutable
	aside func()      // called when the round was set aside; immutable
}

var _ rounds.Ledger = (*ledger)(nil)

// PutRound implements rounds.Ledger.
func (l *ledger) PutRound(ctx context.Context, r round.Record) error {
	phase, err := json.Marshal(r)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode record of round %s", r.Round)
	}
	return l.store.AdvanceOperation(ctx, l.fence, r.Round.Cluster, l.id, phase)
}

// EndRound implements rounds.Ledger.
func (l *ledger) EndRound(ctx context.Context, r round.Record) error {
	if !r.Unsettled() {
		return l.store.EndOperation(ctx, l.fence, r.Round.Cluster, l.id, nil)
	}
	phase, err := json.Marshal(r)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode record of round %s", r.Round)
	}
	if err := l.store.SetAside(ctx, l.fence, r.Round.Cluster, l.id, phase); err != nil {
		return err
	}
	l.aside()
	return nil
}

// decodeRound reads the record of a round that another coordinator left.
func decodeRound(op store.Operation) (round.Record, error) {
	var r round.Record
	if err := json.Unmarshal(op.Phase, &r); err != nil {
		return r, fault.Wrap(fault.Corrupt, err, "record of operation %s", op.ID)
	}
	if r.Round.Cluster != op.Cluster || uint64(r.Round.Epoch) != op.Epoch {
		return r, fault.New(fault.Corrupt, "record of operation %s: is of round %s, not of %s",
			op.ID, r.Round, fmt.Sprintf("%s@%d", op.Cluster, op.Epoch))
	}
	return r, nil
}
