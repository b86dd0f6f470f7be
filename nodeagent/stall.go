package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fermata/protocol/fault"
	"fermata/vmm"
)

const (
	// stallPoll is how soon the agent notices a guest that stands still for a disk. The
	// state is asked for: an event of the monitor is missed while nobody is connected,
	// and says nothing of what happened under an earlier agent. A question costs a
	// tenth of a millisecond.
	stallPoll = time.Second

	// A guest that stands still is let run after firstRetry, then after twice as long
	// each time, up to longestRetry; and at once when there is roomGrown more room. A
	// guest that finds no room again stands still again, and has lost nothing.
	firstRetry   = time.Second
	longestRetry = 30 * time.Second
	roomGrown    = 1 << 20

	// roomLeft is what a file system has that is not full: then a disk without room has
	// reached its quota.
	roomLeft = 1 << 20
)

// stall is a guest that stands still because the host could not carry out a request of
// one of its disks.
type stall struct {
	since  time.Time
	reason string      // why, in words; follows "stands still: "
	class  fault.Class // of a call that needs the guest to run
	wait   time.Duration
	next   time.Time // when it is let run again
	room   uint64    // bytes that were free when it was let run last
}

// watchDisks looks out for guests that stand still for a disk until ctx ends, says so
// and lets them run again.
func (a *Agent) watchDisks(ctx context.Context) {
	ticker := time.NewTicker(stallPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var g errgroup.Group
		g.SetLimit(attachWidth)
		for _, c := range a.allClusters() {
			if !c.isRunning() {
				continue
			}
			for _, guest := range c.list() {
				if len(guest.spec.Disks) > 0 || adopted(guest) {
					g.Go(func() error { a.lookAtDisks(ctx, c, guest); return nil })
				}
			}
		}
		_ = g.Wait() // no errors
	}
}

// lookAtDisks finds out whether a guest stands still for a disk.
func (a *Agent) lookAtDisks(ctx context.Context, c *cluster, g *guest) {
	ctx, cancel := context.WithTimeout(ctx, statusBudget)
	defer cancel()
	log := a.log.With("cluster", c.name, "guest", g.spec.Name)
	status, err := g.machine.Status(ctx)
	if err != nil {
		return // whoever needs it finds out
	}
	s := c.stallOf(g)
	switch {
	case status != vmm.StatusIOError && s == nil:
	case status != vmm.StatusIOError:
		c.setStall(g, nil)
		a.tell()
		log.Info("guest does not stand still for a disk any more", "status", status.String(), "stood-still", time.Since(s.since).Round(time.Millisecond))
	case s == nil:
		s = a.newStall(ctx, g)
		c.setStall(g, s)
		a.tell()
		log.Error("guest stands still for a disk", "reason", s.reason)
	case s.due(g) && !adopted(g): // those of somebody else are his to let run
		a.retry(ctx, c, g, *s)
	}
}

// newStall finds out why a guest stands still.
func (a *Agent) newStall(ctx context.Context, g *guest) *stall {
	s := &stall{since: time.Now(), wait: firstRetry, class: fault.NoSpace, room: roomFor(g)}
	s.next = s.since.Add(s.wait)
	disks, err := g.machine.DiskErrors(ctx)
	var reasons []string
	for _, d := range disks {
		if !d.NoSpace {
			s.class = fault.Invalid
		}
		reasons = append(reasons, diskReason(g, d))
	}
	s.reason = strings.Join(reasons, ", ")
	if len(reasons) == 0 { // it runs again already, or does not answer
		a.log.Debug("disk errors unknown", "cluster", g.cluster, "guest", g.spec.Name, "error", err)
		s.reason = unknownStall
	}
	return s
}

const unknownStall = "the node could not carry out a request of one of its disks"

// diskReason says what is the matter with a disk.
func diskReason(g *guest, d vmm.DiskError) string {
	if !d.NoSpace {
		return fmt.Sprintf("disk %s: the node cannot read or write its image", d.Disk)
	}
	if adopted(g) {
		return fmt.Sprintf("disk %s: no space left for its image", d.Disk)
	}
	free := roomFor(g)
	for _, spec := range g.spec.Disks {
		if spec.Name == d.Disk && spec.QuotaBytes > 0 && free > roomLeft {
			return fmt.Sprintf("disk %s: its quota of %d MiB is used up", d.Disk, spec.QuotaBytes>>20)
		}
	}
	return fmt.Sprintf("disk %s: no space left on the file system of %s (%d KiB free)", d.Disk, g.dir, free>>10)
}

// roomFor is how much the file system of a guest's overlays has left, in bytes.
func roomFor(g *guest) uint64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(g.dir, &fs); err != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}

// due reports whether it is time to let the guest run again.
func (s *stall) due(g *guest) bool {
	return !time.Now().Before(s.next) || s.class == fault.NoSpace && roomFor(g) >= s.room+roomGrown
}

// retry lets a guest run again, which repeats the request that has failed.
func (a *Agent) retry(ctx context.Context, c *cluster, g *guest, s stall) {
	s.wait, s.room = min(2*s.wait, longestRetry), roomFor(g)
	s.next = time.Now().Add(s.wait)
	c.setStall(g, &s)
	err := g.machine.Continue(ctx)
	a.log.Debug("guest that stands still for a disk was let run", "cluster", c.name, "guest", g.spec.Name, "error", err)
}

// stallOf returns why a guest stands still for a disk; nil: it does not, as far as is
// known.
func (c *cluster) stallOf(g *guest) *stall {
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.stall
}

func (c *cluster) setStall(g *guest, s *stall) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.stall = s
}

// stallReason says why a guest stands still for a disk.
func (c *cluster) stallReason(g *guest) string {
	if s := c.stallOf(g); s != nil {
		return s.reason
	}
	return unknownStall
}

// stallFault is the error of a call that needs a guest to run which stands still for a
// disk.
func (a *Agent) stallFault(ctx context.Context, c *cluster, g *guest) error {
	s := c.stallOf(g)
	if s == nil {
		s = a.newStall(ctx, g)
	}
	way := "free some space there, and the guest continues by itself"
	switch {
	case adopted(g):
		way = "whoever started it has to let it continue"
	case s.class != fault.NoSpace:
		way = "the agent lets it continue every now and then; see the node's log"
	case strings.Contains(s.reason, "quota"):
		way = fmt.Sprintf("use `fermata rollback %s` to go back to a checkpoint", c.name)
	}
	return fault.New(s.class, "guest %s on node %s stands still: %s; %s", g.spec.Name, a.cfg.Name, s.reason, way)
}

// continueGuest lets a guest run. One whose disk meets an error at once stands still, but
// not for us: the agent looks after it from then on.
func (a *Agent) continueGuest(ctx context.Context, g *guest) error {
	err := g.machine.Continue(ctx)
	if errors.Is(err, vmm.ErrIOError) {
		a.log.Warn("guest stands still for a disk as soon as it runs", "cluster", g.cluster, "guest", g.spec.Name)
		return nil
	}
	return err
}
