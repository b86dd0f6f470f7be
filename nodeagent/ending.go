package nodeagent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// watch begins to look out for the end of a complete guest: nobody has asked for it, and
// everybody has to know. The guest is one of the cluster's already.
func (a *Agent) watch(c *cluster, g *guest) {
	stop, watched := make(chan struct{}), make(chan struct{})
	g.endWatch = func() {
		close(stop)
		<-watched
		g.endWatch = nil
	}
	go func() {
		defer close(watched)
		select {
		case <-stop:
		case <-g.machine.Exited():
			a.noteEnd(c, g, journal.Ending{UnixNS: time.Now().UnixNano(), Why: g.machine.ExitReason()})
		}
	}()
}

// unwatch returns when nobody looks out for the guest's end any more: it is about to be
// ended on purpose, or let go of.
//
// Preconditions: the caller has the cluster's turn.
func (g *guest) unwatch() {
	if g.endWatch != nil {
		g.endWatch()
	}
}

// noteEnd makes it known, and durable, that a guest has ended by itself.
func (a *Agent) noteEnd(c *cluster, g *guest, e journal.Ending) {
	log := a.log.With("cluster", c.name, "guest", g.spec.Name)
	log.Error("guest has ended", "reason", e.Why, "epoch", g.epoch)
	if err := a.journal.UpdateGuest(c.name, g.spec.Name, func(rec *journal.Guest) { rec.Ending = &e }); err != nil {
		log.Error("end of the guest cannot be journalled", "error", err)
	}
	c.mu.Lock()
	g.ending = &e
	c.mu.Unlock()
	a.tell()
}

// endedMeanwhile notes a guest that an agent has found ended when it started.
func (a *Agent) endedMeanwhile(c *cluster, g *guest, rec journal.Guest, cause error) {
	log := a.log.With("cluster", rec.Cluster, "guest", rec.Name)
	c.setAside(g, api.GuestState_GUEST_STATE_DEAD)
	if rec.Ending != nil {
		c.mu.Lock()
		g.ending = rec.Ending
		c.mu.Unlock()
	} else {
		log.Debug("guest cannot be found", "error", cause)
		a.noteEnd(c, g, journal.Ending{Why: "it ended while no agent ran, which was found at " + clock(time.Now())})
	}
	// Its console stays for whoever wants to know why; its memory need not.
	if err := os.RemoveAll(a.memoryDir(rec.Cluster, rec.Name)); err != nil {
		log.Error("memory of a guest that ended cannot be removed", "error", err)
	}
}

// endingOf returns how a guest has ended; nil: it has not, as far as is known.
func (c *cluster) endingOf(g *guest) *journal.Ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.ending
}

// refuseEnded is an error if guests of the cluster have ended: what an operator does about it is
// said there.
func (c *cluster) refuseEnded(node string) error {
	var ended []string
	for _, g := range append(c.list(), c.leftovers()...) {
		if e := c.endingOf(g); e != nil {
			ended = append(ended, fmt.Sprintf("guest %s on node %s has ended (%s)", g.spec.Name, node, endingText(e)))
		}
	}
	if len(ended) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "%s; use `fermata rollback %s` to go back to a checkpoint", strings.Join(ended, "; "), c.name)
}

// endingText says why and when.
func endingText(e *journal.Ending) string {
	if e.UnixNS == 0 {
		return e.Why
	}
	return e.Why + " at " + clock(time.Unix(0, e.UnixNS))
}

// clock is an instant as it stands in messages.
func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// tell has the node register now instead of with its next heartbeat: something has
// happened that the coordinator should know.
func (a *Agent) tell() {
	select {
	case a.news <- struct{}{}:
	default: // it is about to anyway
	}
}

// awaitNews returns when the node should register again.
func (a *Agent) awaitNews(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-a.news:
	}
}
