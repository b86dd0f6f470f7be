package coordinator

import (
	"context"
	"time"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// twinBudget bounds the question whether the agent that was registered is still there.
// The agent that registers waits for it.
const twinBudget = time.Second

// checkTwin refuses an agent that is another than the one registered by its name, while
// that one answers: two agents with one certificate would take turns to be the node. An
// agent that was restarted, here or elsewhere, meets nobody at the old address, or
// itself.
func (t *term) checkTwin(ctx context.Context, info *api.NodeInfo) error {
	name, incarnation := info.GetName(), info.GetIncarnation()
	t.mu.Lock()
	same := t.incarnations[name] == incarnation
	t.mu.Unlock()
	if same || incarnation == "" {
		return nil
	}
	first, err := t.c.node(ctx, name)
	switch {
	case fault.ClassOf(err) == fault.NotFound:
		return nil
	case err != nil:
		return err
	case !first.GetAlive(), first.GetIncarnation() == "", first.GetIncarnation() == incarnation:
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, twinBudget)
	defer cancel()
	there, err := t.c.deployer.Describe(asking, nodeOf(first))
	if err != nil || there.GetIncarnation() != first.GetIncarnation() {
		return ctx.Err()
	}
	t.c.log.Warn("a second agent with the name of a node is refused", "node", name, "first", first.GetAddress(), "second", info.GetAddress())
	return fault.New(fault.Exists, "register node %s: another agent of this name is alive at %s; each node needs a name and a certificate of its own (fermata certs issue --role agent --name NAME)",
		name, first.GetAddress())
}
