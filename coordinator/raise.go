package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"fermata/coordinator/deploy"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// raising brings the guests of one cluster up, for a start or a restart.
//
// It goes from what can be taken back to what cannot: everything is checked, the epoch is
// drawn and the intent stored before the first guest of an earlier life is ended. What is
// stored lets a successor of this coordinator carry the work on.
type raising struct {
	t         *term
	kind      store.Kind
	cluster   string
	request   proto.Message // of the operator, for a successor
	stepClock bool
	p         progress
	begun     time.Time
	seen      *survey

	before   *former     // the cluster, to go back to while nothing was touched; nil: there is no way back
	touched  bool        // guests of an earlier life may have been ended
	op       string      // of the operation in the store; empty: not begun
	life     deploy.Life // of the newest attempt
	notEnded []string    // nodes where guests of an earlier life may be left, each with the reason
}

// target is where the guests are to go and what they are made from.
type target struct {
	parts      []deploy.Part
	where      map[string]string // guest to node
	checkpoint uint64            // epoch; 0: they boot afresh
}

// intent is what a start or restart keeps in the store while it runs: the phase of its
// operation.
type intent struct {
	Epoch      uint64          `json:"epoch"` // of the life that it begins
	Checkpoint uint64          `json:"checkpoint,omitempty"`
	Request    json.RawMessage `json:"request"` // the operator's, as protobuf JSON
	Before     *former         `json:"before,omitempty"`
	Touched    bool            `json:"touched"` // guests of an earlier life may have been ended
}

// former is what a start or restart changes of a cluster's record when it begins.
type former struct {
	State       api.ClusterState  `json:"state"`
	Reason      string            `json:"reason,omitempty"`
	Assignments map[string]string `json:"assignments,omitempty"`
	Life        uint64            `json:"life,omitempty"`
}

func formerOf(c store.Cluster) *former {
	return &former{State: c.State, Reason: c.Reason, Assignments: c.Assignments, Life: c.Life}
}

// restore is the change of the cluster's record that goes back.
func (f *former) restore(c *store.Cluster) error {
	c.State, c.Reason, c.Assignments, c.Life = f.State, f.Reason, f.Assignments, f.Life
	return nil
}

func decodeIntent(op store.Operation, request proto.Message) (intent, error) {
	var in intent
	err := json.Unmarshal(op.Phase, &in)
	if err == nil {
		err = protojson.Unmarshal(in.Request, request)
	}
	if err != nil {
		return in, fault.Wrap(fault.Corrupt, err, "record of operation %s", op.ID)
	}
	return in, nil
}

// replaces reports whether guests that may still do work are ended for the new ones.
func (r *raising) replaces() bool {
	return slices.ContainsFunc(r.seen.guests(r.cluster), mayRun)
}

// mayRun reports whether a guest is not known to have ended.
func mayRun(g *api.GuestStatus) bool {
	switch g.GetState() {
	case api.GuestState_GUEST_STATE_RUNNING, api.GuestState_GUEST_STATE_PAUSED, api.GuestState_GUEST_STATE_UNKNOWN:
		return true
	default:
		return false
	}
}

// check finds what would make raise fail, and touches nothing. Where guests that run will
// be ended, all that the new ones are made from is read first.
func (r *raising) check(ctx context.Context, tg target) error {
	epoch, err := r.t.unusedEpoch(ctx, r.cluster, r.seen)
	if err != nil {
		return err
	}
	r.p(&api.Event{Step: deploy.StepCheck})
	if err := r.t.c.deployer.Check(ctx, r.t.life(r.cluster, epoch), tg.parts, r.replaces(), r.p); err != nil {
		return err
	}
	return failpoint.Inject(ctx, failpoint.CoordinatorAfterCheck)
}

// raise makes the guests and lets them run. On error guests may be left, until fail.
//
// Once guests that may run are about to be ended, the caller's going away ends nothing any
// more: a cluster left without guests is what nobody has asked for.
func (r *raising) raise(ctx context.Context, tg target) (brought, error) {
	epoch, err := r.t.nextEpoch(ctx, r.cluster, r.seen)
	if err != nil {
		return brought{}, err
	}
	if r.life.Epoch != 0 { // of an attempt that failed
		r.letGo()
	}
	r.life = r.t.life(r.cluster, epoch)
	if err := r.record(ctx, tg); err != nil {
		return brought{}, err
	}
	if err := r.hold(ctx, tg.checkpoint); err != nil {
		return brought{}, err
	}
	if r.replaces() {
		ctx = r.t.ctx
	}
	if err := failpoint.Inject(ctx, failpoint.CoordinatorAfterRecord); err != nil {
		return brought{}, err
	}
	if err := r.touch(ctx, tg); err != nil {
		return brought{}, err
	}
	if err := r.clear(ctx, tg); err != nil {
		return brought{}, err
	}
	if err := failpoint.Inject(ctx, failpoint.CoordinatorAfterDestroy); err != nil {
		return brought{}, err
	}
	up, err := r.t.bringUp(ctx, r.life, tg.parts, r.stepClock, r.p)
	if isUncertain(err) && r.t.ctx.Err() == nil {
		// An answer that was lost may hide that all of it was done.
		if now, askErr := r.t.standing(r.t.ctx, r.cluster, epoch, 0); askErr == nil && now == allRun {
			r.t.c.log.Warn("a node did not answer in time, but all guests run", "cluster", r.cluster, "epoch", epoch, "error", err)
			err = nil
		}
	}
	return up, err
}

// isUncertain reports whether what an error is about may have been done, or may succeed
// on other nodes.
func isUncertain(err error) bool {
	switch fault.ClassOf(err) {
	case fault.Unknown, fault.Unavailable:
		return true
	default:
		return false
	}
}

// isPassing reports whether an error may be gone when the same is tried a little later.
func isPassing(err error) bool {
	switch fault.ClassOf(err) {
	case fault.Invalid, fault.NotFound, fault.Exists, fault.Mismatch, fault.Corrupt, fault.Denied:
		return false
	default:
		return true
	}
}

// record stores what the newest attempt is about to do.
func (r *raising) record(ctx context.Context, tg target) error {
	phase, err := r.intent(tg)
	if err != nil {
		return err
	}
	change := func(c *store.Cluster) error {
		c.State, c.Reason, c.Assignments = api.ClusterState_CLUSTER_STATE_STARTING, "", tg.where
		c.Life = r.life.Epoch
		c.Incarnation++
		return nil
	}
	if r.op == "" {
		r.op, err = r.t.begin(ctx, r.kind, r.cluster, r.life.Epoch, phase, change)
		return err
	}
	if err := r.advance(ctx, phase); err != nil {
		return err
	}
	return r.t.surely(ctx, func(ctx context.Context) error {
		return r.t.c.store.UpdateCluster(ctx, r.t.fence, r.cluster, change)
	})
}

// touch records that guests of an earlier life are about to be ended: from here on there is
// no way back.
func (r *raising) touch(ctx context.Context, tg target) error {
	if r.touched {
		return nil
	}
	r.touched = true
	phase, err := r.intent(tg)
	if err == nil {
		err = r.advance(ctx, phase)
	}
	if err != nil {
		r.touched = false
	}
	return err
}

func (r *raising) advance(ctx context.Context, phase []byte) error {
	err := r.t.surely(ctx, func(ctx context.Context) error {
		return r.t.c.store.AdvanceOperation(ctx, r.t.fence, r.cluster, r.op, phase)
	})
	if err != nil {
		return fmt.Errorf("record %s: %w", r.kind, err)
	}
	return nil
}

func (r *raising) intent(tg target) ([]byte, error) {
	request, err := protojson.Marshal(r.request)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode the request")
	}
	phase, err := json.Marshal(intent{
		Epoch: r.life.Epoch, Checkpoint: tg.checkpoint, Request: request, Before: r.before, Touched: r.touched,
	})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode the intent")
	}
	return phase, nil
}

// noteUnreachable notes the nodes that do not answer and may have guests of an earlier
// life. Nothing is sent to them: a call that reached one late would end guests of the new
// life.
func (r *raising) noteUnreachable(before store.Cluster) {
	for _, v := range r.seen.nodes {
		if v.answered {
			continue
		}
		var names []string
		if before.State != api.ClusterState_CLUSTER_STATE_STOPPED {
			names = guestsOn(before, v.info.GetName())
		}
		for _, g := range v.info.GetGuests() { // as it registered last
			if g.GetCluster() == r.cluster && mayRun(g) {
				names = append(names, g.GetName())
			}
		}
		slices.Sort(names)
		if names = slices.Compact(names); len(names) > 0 {
			r.left(v.info.GetName(), fmt.Sprintf("it %s; guests %s of the earlier life may still run there, until its agent registers and ends them",
				v.silence(), strings.Join(names, ", ")))
		}
	}
}

// left notes that guests of an earlier life may be left on a node.
func (r *raising) left(node, reason string) {
	r.notEnded = append(r.notEnded, fmt.Sprintf("node %s: %s", node, reason))
	r.t.c.log.Warn("guests of an earlier life may be left on a node", "cluster", r.cluster, "node", node, "reason", reason)
	r.p(&api.Event{Step: deploy.StepDestroy, Node: node, Text: "guests of the earlier life are not ended: " + reason})
}

// clear ends what an earlier life of the cluster may have left, on every node
// that answers. Where guests are to be made it must succeed; elsewhere a
// failure is only noted, as agents refuse frames of an older life.
func (r *raising) clear(ctx context.Context, tg target) error {
	r.p(&api.Event{Step: deploy.StepDestroy})
	var needed, others []deploy.Node
	for _, v := range r.seen.usable() {
		if slices.ContainsFunc(tg.parts, func(part deploy.Part) bool { return part.Node.Name == v.info.GetName() }) {
			needed = append(needed, v.node())
		} else {
			others = append(others, v.node())
		}
	}
	failed := make([]error, len(others))
	rest := make(chan struct{})
	go func() {
		defer close(rest)
		failed = r.t.c.deployer.DestroyEach(ctx, r.life, others)
	}()
	err := r.t.c.deployer.Destroy(ctx, r.life, needed)
	<-rest
	for i, err := range failed {
		if err != nil {
			r.left(others[i].Name, oneLine(err))
		}
	}
	return err
}

// succeed records that the guests run.
func (r *raising) succeed() error {
	r.letGo()
	if err := failpoint.Inject(r.t.ctx, failpoint.CoordinatorBeforeEnd); err != nil {
		return err
	}
	return r.t.end(r.cluster, r.op, settle(api.ClusterState_CLUSTER_STATE_RUNNING, ""))
}

// fail ends what did not come up, of which cause must not be nil. While nothing was touched
// the cluster is as it was; afterwards nothing is left to run by half. It returns what
// the caller is told.
func (r *raising) fail(cause error) error {
	if r.op == "" {
		return cause
	}
	if r.seen == nil { // a successor's attempt, which has not come far
		if isPassing(cause) {
			return cause // the operation stays, and is tried again
		}
		var err error
		if r.seen, err = r.t.survey(r.t.ctx); err != nil {
			return errors.Join(cause, err)
		}
	}
	r.letGo()
	if !r.touched && r.before != nil && r.t.ctx.Err() == nil {
		r.t.c.log.Warn("nothing was changed", "cluster", r.cluster, "operation", r.op, "reason", cause)
		return errors.Join(cause, r.t.end(r.cluster, r.op, r.before.restore))
	}
	return r.t.tearDown(r.life, r.op, nodesOf(r.seen.usable()), cause)
}
