package nodeagent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"fermata/imageio/extent"
	"fermata/nodeagent/capture"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/guestport"
	"fermata/vmm"
)

// confidential is the memory of one guest that is never read: what its specification
// names, and what a program in it has registered. A cut asks for it while the guest
// stands still, so whatever the guest was told to be hidden before is hidden from it.
//
// Addresses are guest-physical.
type confidential struct {
	machine vmm.Locator                            // immutable
	store   func(registered []extent.Extent) error // makes what is registered durable; immutable
	given   extent.Set                             // immutable; by the specification
	zeroed  extent.Set                             // immutable; confidential in the checkpoint that the guest began from

	mu         sync.Mutex
	registered extent.Set     // guarded by mu
	hidden     capture.Hidden // guarded by mu; all of it, by block; replaced, never changed
}

// addressesOf reads ranges from outside.
func addressesOf(ranges []*api.MemoryRange) (set extent.Set, err error) {
	if len(ranges) > guestport.MaxRanges {
		return set, fault.New(fault.Invalid, "confidential memory: %d ranges, limit %d", len(ranges), guestport.MaxRanges)
	}
	for _, r := range ranges {
		e := extent.Extent{Off: int64(min(r.GetStart(), math.MaxInt64)), Len: int64(min(r.GetBytes(), math.MaxInt64))}
		if !e.Valid() || e.Empty() || e.RoundOut(guestport.PageBytes) != e {
			return set, fault.New(fault.Invalid, "confidential memory: %#x, %d bytes: not whole pages of %d bytes", r.GetStart(), r.GetBytes(), guestport.PageBytes)
		}
		set.Add(e)
	}
	return set, nil
}

func rangesOf(set extent.Set) (out []*api.MemoryRange) {
	for e := range set.All() {
		out = append(out, &api.MemoryRange{Start: uint64(e.Off), Bytes: uint64(e.Len)})
	}
	return out
}

func portRanges(set extent.Set) (out []guestport.Range) {
	for e := range set.All() {
		out = append(out, guestport.Range{Start: uint64(e.Off), Bytes: uint64(e.Len)})
	}
	return out
}

// hides begins with what the specification gives and what was registered before.
//
// Preconditions: the guest has its machine.
func (a *Agent) hides(ctx context.Context, g *guest, registered, zeroed extent.Set) error {
	given, err := addressesOf(g.spec.GetConfidential())
	if err != nil {
		return err
	}
	c := &confidential{machine: g.machine, given: given, zeroed: zeroed, store: func(all []extent.Extent) error {
		return a.journal.UpdateGuest(g.cluster, g.spec.Name, func(rec *journal.Guest) { rec.Confidential = all })
	}}
	hidden, err := c.locate(ctx, registered)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "guest %s: confidential memory", g.spec.Name)
	}
	c.hide(registered, hidden)
	g.confidential = c
	return nil
}

// locate tells what is hidden if registered is what the guest has registered.
func (c *confidential) locate(ctx context.Context, registered extent.Set) (capture.Hidden, error) {
	parts, err := c.machine.Locate(ctx, c.given.Union(registered))
	if err != nil {
		return nil, err
	}
	hidden := capture.Hidden{}
	for _, p := range parts {
		set := hidden[p.Block]
		set.Add(p.Where)
		hidden[p.Block] = set
	}
	return hidden, nil
}

// hide is effective when it returns.
func (c *confidential) hide(registered extent.Set, hidden capture.Hidden) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.registered, c.hidden = registered, hidden
}

// now is what is hidden at this moment, and what of it the guest has registered.
func (c *confidential) now() (capture.Hidden, extent.Set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hidden, c.registered.Clone()
}

// answer does what the guest asks for. One request at a time.
func (c *confidential) answer(ctx context.Context, life uint64, req *guestport.Request) guestport.Reply {
	reply := guestport.Reply{ID: req.ID, Life: life, Zeroed: portRanges(c.zeroed)}
	if err := c.obey(ctx, req); err != nil {
		reply.Error = err.Error()
	}
	_, registered := c.now()
	reply.Ranges = portRanges(registered.Union(c.given))
	return reply
}

func (c *confidential) obey(ctx context.Context, req *guestport.Request) error {
	if err := req.Validate(); err != nil {
		return err
	}
	_, registered := c.now()
	for _, r := range req.Ranges {
		e := extent.Extent{Off: int64(r.Start), Len: int64(r.Bytes)}
		if req.Do == guestport.Hide {
			registered.Add(e)
		} else {
			registered.Remove(e)
		}
	}
	if n := registered.Count(); n > guestport.MaxRanges {
		return fmt.Errorf("%d ranges in all, limit %d", n, guestport.MaxRanges)
	}
	if req.Do == guestport.Status {
		return nil
	}
	hidden, err := c.locate(ctx, registered)
	if err != nil {
		return err
	}
	if err := c.store(slices.Collect(registered.All())); err != nil { // durable before it is effective
		return err
	}
	c.hide(registered, hidden)
	return nil
}

// toolRetry spaces attempts to reach a guest's port.
const toolRetry = time.Second

// toolPause spaces the changes that a guest asks for: each costs its node a durable
// record and a question to the monitor.
const toolPause = 20 * time.Millisecond

// toolBudget bounds what one request of a guest may take, so that a monitor that hangs
// does not keep the port for ever.
const toolBudget = 10 * time.Second

// openTool begins to serve a guest's tool, if the guest has the port for one.
func (a *Agent) openTool(c *cluster, g *guest) {
	if !g.spec.GetGuestTool() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { a.serveTool(ctx, c, g) })
	g.endTool = func() {
		cancel()
		serving.Wait()
	}
}

// closeTool ends what openTool began. It is idempotent.
func (g *guest) closeTool() {
	if g.endTool != nil {
		g.endTool()
	}
}

// serveTool answers the program in a guest until the guest's machine or ctx ends.
func (a *Agent) serveTool(ctx context.Context, c *cluster, g *guest) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-g.machine.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	log := a.log.With("cluster", g.cluster, "guest", g.spec.Name)
	for ctx.Err() == nil {
		conn, err := g.machine.DialTool(ctx)
		if err == nil {
			err = converse(ctx, conn, func(req *guestport.Request) guestport.Reply {
				ctx, cancel := context.WithTimeout(ctx, toolBudget)
				defer cancel()
				reply := g.confidential.answer(ctx, c.record().Epoch, req)
				if req.Do != guestport.Status {
					time.Sleep(toolPause)
					log.Info("guest registers confidential memory", "do", req.Do, "ranges", len(req.Ranges), "error", reply.Error)
				}
				return reply
			})
		}
		if ctx.Err() == nil {
			log.Debug("port of the guest's tool", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(toolRetry):
		}
	}
}

// converse answers requests until the connection or ctx ends.
func converse(ctx context.Context, conn net.Conn, answer func(*guestport.Request) guestport.Reply) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	r := guestport.NewReader(conn)
	for {
		reply, err := one(r, answer)
		if err != nil {
			return err
		}
		if err := guestport.Write(conn, reply); err != nil {
			return err
		}
	}
}

// one reads a request and answers it. A line that is none is answered, too.
func one(r *bufio.Reader, answer func(*guestport.Request) guestport.Reply) (guestport.Reply, error) {
	var req guestport.Request
	err := guestport.Read(r, &req)
	if errors.Is(err, guestport.ErrNoJSON) {
		return guestport.Reply{Error: err.Error()}, nil
	}
	if err != nil {
		return guestport.Reply{}, err
	}
	return answer(&req), nil
}
