package nodeagent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/experiments/guests"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
	"fermata/vmm"
)

// statusNamed returns what the agent tells of a guest.
func statusNamed(t *testing.T, describe func() (*api.NodeInfo, error), guest string) *api.GuestStatus {
	t.Helper()
	info, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range info.Guests {
		if g.Name == guest {
			return g
		}
	}
	t.Fatalf("no guest %s among %v", guest, info.Guests)
	return nil
}

// watched runs the watch over disks for the guests of a bench.
func (b *bench) watched() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	base := filepath.Join(b.t.TempDir(), "base.img")
	if err := os.WriteFile(base, make([]byte, pageBytes), 0o600); err != nil {
		b.t.Fatal(err)
	}
	for _, g := range b.cluster.guests {
		g.spec.Disks = []*api.DiskSpec{{Name: "root", Path: base, Format: "raw", ReadOnly: true}}
	}
	go func() {
		defer close(ended)
		b.agent.watchDisks(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// A guest that stands still for its disk is shown as such, cannot be checkpointed, and
// runs again when it can.
func TestStall_IsShownAndMended(t *testing.T) {
	b := newBench(t, 2)
	b.watched()
	show := func() *api.GuestStatus {
		return statusNamed(t, func() (*api.NodeInfo, error) { return b.agent.Describe(t.Context()) }, "g1")
	}
	b.machines[0].noRoom.Store(true)
	b.machines[0].write()
	b.await("the agent to know why", func() bool { return strings.Contains(show().Reason, "disk root: no space left") })
	if s := show(); s.State != api.GuestState_GUEST_STATE_PAUSED {
		t.Errorf("state %v, want paused", s.State)
	}
	_, err := b.agent.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: b.round(2), Nodes: []string{"n1"}, PauseBudgetMs: 1000})
	if fault.ClassOf(err) != fault.NoSpace || !strings.Contains(err.Error(), "guest g1 on node n1 stands still: disk root: no space left") {
		t.Errorf("checkpoint: %v, want class no-space and the reason", err)
	}
	b.finish(2, false)
	b.machines[0].noRoom.Store(false)
	b.allRun()
	b.await("nothing to be told of the disk", func() bool { return show().Reason == "" })
	b.checkpoint(3)
}

// A guest whose disk finds no room in the middle of a cut fails the round, and keeps
// nobody from running.
func TestStall_InTheMiddleOfACut(t *testing.T) {
	b := newBench(t, 2)
	m := b.machines[0]
	m.noRoom.Store(true)
	m.onStop = func(context.Context) error { m.write(); return nil } // what Stop drains
	if err := b.cut(2, stepBudget); fault.ClassOf(err) != fault.NoSpace || !strings.Contains(err.Error(), "guest g1 on node n1 stands still") {
		t.Errorf("cut: %v, want class no-space and the guest", err)
	}
	b.finish(2, false) // answered only when the round lets go of everybody
	b.await("the other guest to run", func() bool { return b.status(1) == vmm.StatusRunning })
	b.nothingCopied()
	m.onStop = nil
	m.noRoom.Store(false)
	b.watched()
	b.allRun()
	b.checkpoint(3)
}

// A guest is let run less and less often while there is no room.
func TestStall_RetriesBackOff(t *testing.T) {
	b := newBench(t, 1)
	m := b.machines[0]
	g := b.cluster.list()[0]
	m.noRoom.Store(true)
	m.write()
	var waits []time.Duration
	b.agent.lookAtDisks(t.Context(), b.cluster, g)
	for range 7 {
		s := *b.cluster.stallOf(g)
		s.next, s.room = time.Now(), 1<<62 // time passes, and room does not grow
		b.cluster.setStall(g, &s)
		b.agent.lookAtDisks(t.Context(), b.cluster, g)
		waits = append(waits, b.cluster.stallOf(g).wait)
	}
	if waits[0] != 2*firstRetry || waits[6] != longestRetry {
		t.Errorf("waits %v, want them to grow from %v to %v", waits, 2*firstRetry, longestRetry)
	}
	s := *b.cluster.stallOf(g)
	if s.next, s.room = time.Now().Add(time.Hour), roomFor(g); s.due(g) {
		t.Error("a guest is due before its time, with no more room than before")
	}
	s.room -= min(s.room, roomGrown)
	if !s.due(g) {
		t.Error("a guest is not due though there is more room")
	}
}

// smallState puts the state of a node on a file system of its own.
func (r *rig) smallState(n *rigNode, size string) {
	t := r.t
	t.Helper()
	if err := os.MkdirAll(n.cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.cfg.StateDir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop(n.name)
		if err := unix.Unmount(n.cfg.StateDir, 0); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves little room on the file system of a node's state. The function it returns
// makes room again.
func (n *rigNode) fill(t *testing.T) (free func()) {
	t.Helper()
	const left = 32 << 10 // less than a cluster of an overlay
	var fs unix.Statfs_t
	path := filepath.Join(n.cfg.StateDir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err = unix.ENOSPC; errors.Is(err, unix.ENOSPC); { // the guest writes meanwhile
		if err = unix.Statfs(n.cfg.StateDir, &fs); err == nil {
			err = unix.Fallocate(int(f.Fd()), 0, 0, max(int64(fs.Bavail)*fs.Bsize-left, 4096))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// lastDirty returns the last account of the program that writes to a guest's disk.
func lastDirty(console []byte) (last guests.Dirty) {
	for text := range bytes.Lines(console) {
		if line, ok := guests.Parse(string(text)); ok {
			if d, ok := line.Body.(guests.Dirty); ok {
				last = d
			}
		}
	}
	return last
}

// TestAgent_FullDisk has a guest write to its disk until the node has no room, and makes
// room again.
func TestAgent_FullDisk(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage, mustrun.NetNS) // mounting takes root, too
	r := newRig(t)
	n := r.add("n1")
	r.smallState(n, "160m")
	n.cfg.DestroyOnExit = false
	r.start("n1")
	defer func() {
		if t.Failed() { // no agent is to find the guest again
			r.destroy()
		}
	}()
	base := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(base, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, 256<<20); err != nil {
		t.Fatal(err)
	}
	r.app = guests.Cluster{Count: 1, Work: guests.RunDirty, Writer: guests.Writer{MiB: 1, Rate: 1, Every: 200 * time.Millisecond}}
	r.disks = []*api.DiskSpec{{Name: "data", Path: base, Format: "raw"}}
	where := map[int]string{1: "n1"}
	r.create(1, where, nil, nil)
	free := n.fill(t) // before it writes to its disk: it writes again where it has written
	name := guests.Name(1)
	status := func() *api.GuestStatus {
		return statusNamed(t, func() (*api.NodeInfo, error) { return n.client.Describe(t.Context(), &api.DescribeRequest{}) }, name)
	}
	records := func() uint64 { return lastDirty(r.console("n1", 1)).Records }
	r.await("the guest to stand still", bootBudget, func() bool {
		return status().State == api.GuestState_GUEST_STATE_PAUSED && strings.Contains(status().Reason, "disk data: no space left on the file system of")
	})
	_, err := n.client.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: r.round(2), Nodes: []string{"n1"}, PauseBudgetMs: 5000})
	if fault.ClassOf(err) != fault.NoSpace || !strings.Contains(err.Error(), "stands still: disk data: no space left") {
		t.Errorf("checkpoint: %v, want class no-space and the reason", err)
	}
	_, err = n.client.FinishRound(t.Context(), &api.FinishRoundRequest{Round: r.round(2)})
	if err != nil {
		t.Fatal(err)
	}
	// The next agent finds it as it is. Its journal is on the same file system.
	r.stop("n1")
	n.cfg.DestroyOnExit = true // for the end of the test
	r.start("n1")
	r.await("the guest to be known to stand still", stepBudget, func() bool { return strings.Contains(status().Reason, "no space left") })

	free()
	r.await("the guest to run again", stepBudget, func() bool { return status().State == api.GuestState_GUEST_STATE_RUNNING && status().Reason == "" })
	r.await("records on the disk", stepBudget, func() bool { return records() > 50 })
	if d := lastDirty(r.console("n1", 1)); d.Bad+d.BadRecords != 0 {
		t.Errorf("%+v: bad memory or records", d)
	}
	r.checkpoint(3)

	r.destroy()
	r.create(4, where, nil, nil)
	n.fill(t)
	r.await("the guest to stand still again", bootBudget, func() bool { return status().State == api.GuestState_GUEST_STATE_PAUSED })
	r.destroy()
	if left, err := os.ReadDir(filepath.Join(n.cfg.StateDir, "guests")); err != nil || len(left) != 0 {
		t.Errorf("%v left of the guest, %v", left, err)
	}
}

// TestAgent_OverlayQuota has a guest write until its disk's quota is used up, and takes it
// back to a checkpoint of before.
func TestAgent_OverlayQuota(t *testing.T) {
	const quota = 4 << 20
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	base := filepath.Join(t.TempDir(), "base.img")
	if err := os.WriteFile(base, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(base, 64<<20); err != nil {
		t.Fatal(err)
	}
	r.app = guests.Cluster{Count: 1, Work: guests.RunDirty, Writer: guests.Writer{MiB: 1, Rate: 1, Every: 200 * time.Millisecond}}
	r.disks = []*api.DiskSpec{{Name: "data", Path: base, Format: "raw", Werror: "stop", QuotaBytes: quota}}
	where := map[int]string{1: "n1"}
	r.create(1, where, nil, nil)
	status := func() *api.GuestStatus {
		return statusNamed(t, func() (*api.NodeInfo, error) { return n.client.Describe(t.Context(), &api.DescribeRequest{}) }, guests.Name(1))
	}
	full := func() bool { return strings.Contains(status().Reason, "disk data: its quota of 4 MiB is used up") }
	account := func() guests.Dirty { return lastDirty(r.console("n1", 1)) }
	r.await("a record on the disk", bootBudget, func() bool { return account().Records > 0 })
	images, packs, _ := r.checkpoint(2)
	for _, o := range images[guests.Name(1)].Objects {
		if o.Kind == kindDisk && o.SizeBytes >= quota {
			t.Errorf("the checkpoint holds %d bytes of the overlay, its whole quota", o.SizeBytes)
		}
	}
	r.await("the quota to be used up", bootBudget, full)
	r.destroy()
	r.create(3, where, images, packs)
	r.await("more records", stepBudget, func() bool { return account().Records > 0 })
	r.await("the quota to be used up again", bootBudget, full)
	if d := account(); d.Bad+d.BadRecords != 0 {
		t.Errorf("%+v: bad memory or records", d)
	}
}
