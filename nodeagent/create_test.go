package nodeagent

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

func (b *bench) createRequest(cluster string, epoch uint64, guests ...*api.GuestSpec) *api.CreateGuestsRequest {
	return &api.CreateGuestsRequest{Fence: b.fence, Cluster: cluster, Epoch: epoch, Guests: guests}
}

// TestCreateGuests_RepetitionLeavesARunningClusterAlone: a journal that said
// "not released" would keep the guests gated after the agent's next start.
func TestCreateGuests_RepetitionLeavesARunningClusterAlone(t *testing.T) {
	b := newBench(t, 1)
	spec := b.cluster.list()[0].spec
	var updates int
	err := b.agent.CreateGuests(t.Context(), b.createRequest("c", 1, spec), func(u *api.CreateGuestsUpdate) error {
		if u.Created {
			updates++
		}
		return nil
	})
	if err != nil || updates != 1 {
		t.Errorf("repeated: %v, %d guests reported", err, updates)
	}
	for name, req := range map[string]*api.CreateGuestsRequest{
		"a newer life":        b.createRequest("c", 2, spec),
		"other guests, newer": b.createRequest("c", 2, &api.GuestSpec{Name: "g7"}),
		"one more guest":      b.createRequest("c", 1, spec, &api.GuestSpec{Name: "g7"}),
		"made otherwise":      b.createRequest("c", 1, &api.GuestSpec{Name: "g1", MemoryBytes: 1}),
	} {
		if err := b.agent.CreateGuests(t.Context(), req, nil); fault.ClassOf(err) != fault.Exists {
			t.Errorf("%s: %v, want class exists", name, err)
		}
	}
	records, err := b.agent.journal.Clusters()
	if err != nil {
		t.Fatal(err)
	}
	if rec := records["c"]; !rec.Released || rec.Epoch != 1 {
		t.Errorf("journal says %+v of a cluster that runs since epoch 1", rec)
	}
	b.checkpoint(2)
}

func TestCreateGuests_LeavesNothingWhenOneFails(t *testing.T) {
	b := newBench(t, 0)
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The cards are refused after files and the first socket pair were made.
	nics := []*api.NICSpec{{Name: "a", Network: "lan", Mac: "02:00:00:00:00:01"}, {Name: "b", Network: "lan", Mac: "02:00:00:00:00:01"}}
	err := b.agent.CreateGuests(t.Context(), b.createRequest("d", 1,
		&api.GuestSpec{Name: "g1", MemoryBytes: 64 << 20, Kernel: kernel, Nics: nics},
		&api.GuestSpec{Name: "g2", MemoryBytes: 64 << 20, Kernel: kernel + ".missing"},
	), nil)
	if fault.ClassOf(err) != fault.Invalid {
		t.Errorf("error = %v, want class invalid", err)
	}
	guests, err := b.agent.journal.Guests()
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(b.agent.guestsDir(), "d.*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(guests) != 0 || len(left) != 0 {
		t.Errorf("left: journal %v, directories %v", guests, left)
	}
	if free := b.agent.memoryFree(); free != b.agent.cfg.MemoryBytes {
		t.Errorf("%d bytes free of %d", free, b.agent.cfg.MemoryBytes)
	}
	if _, err := b.agent.plane.ClusterStats("d"); err == nil {
		t.Error("the cluster is still on the wire")
	}
}

func TestCheckCreate_RefusesBeforeAnythingIsMade(t *testing.T) {
	good := func() *api.GuestSpec { return &api.GuestSpec{Name: "g1", MemoryBytes: 1 << 20} }
	many := good()
	for i := range maxDevices + 1 {
		many.Nics = append(many.Nics, &api.NICSpec{Name: fmt.Sprint("n", i), Network: "lan", Mac: "02:00:00:00:00:01"})
	}
	for name, req := range map[string]*api.CreateGuestsRequest{
		"no guests":         {Epoch: 1},
		"no epoch":          {Guests: []*api.GuestSpec{good()}},
		"guest twice":       {Epoch: 1, Guests: []*api.GuestSpec{good(), good()}},
		"guest without say": {Epoch: 1, Guests: []*api.GuestSpec{nil}},
		"too many cards":    {Epoch: 1, Guests: []*api.GuestSpec{many}},
		"path as a name":    {Epoch: 1, Guests: []*api.GuestSpec{{Name: "../g1"}}},
		"option as a name":  {Epoch: 1, Guests: []*api.GuestSpec{{Name: "-g1"}}},
		"images of others":  {Epoch: 1, Guests: []*api.GuestSpec{good()}, Images: []*api.GuestImage{{Guest: "g2"}}},
		"disk twice": {Epoch: 1, Guests: []*api.GuestSpec{{Name: "g1", Disks: []*api.DiskSpec{
			{Name: "d", Path: "/a", Format: "raw"}, {Name: "d", Path: "/b", Format: "raw"}}}}},
		"disk that is no path": {Epoch: 1, Guests: []*api.GuestSpec{{Name: "g1", Disks: []*api.DiskSpec{{Name: "d", Path: "json:{}", Format: "raw"}}}}},
	} {
		if err := checkCreate(req); fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want class invalid", name, err)
		}
	}
	if err := checkCreate(&api.CreateGuestsRequest{Epoch: 1, Guests: []*api.GuestSpec{good()}}); err != nil {
		t.Error(err)
	}
}

func TestReserve_CountsGuestsThatAreBeingMade(t *testing.T) {
	b := newBench(t, 0)
	const half = 600 << 20 // of 1 GiB: one fits
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		c := newCluster(journal.Cluster{Name: fmt.Sprint("c", i)})
		b.agent.mu.Lock()
		b.agent.clusters[c.name] = c
		b.agent.mu.Unlock()
		req := b.createRequest(c.name, 1, &api.GuestSpec{Name: "g", MemoryBytes: half})
		wg.Go(func() { _, errs[i] = b.agent.reserve(c, req, []int{0}) })
	}
	wg.Wait()
	fits := 0
	for _, err := range errs {
		switch {
		case err == nil:
			fits++
		case fault.ClassOf(err) != fault.NoSpace:
			t.Errorf("refused with %v, want class no-space", err)
		}
	}
	if fits != 1 {
		t.Errorf("%d guests of %d bytes fit into %d", fits, half, b.agent.cfg.MemoryBytes)
	}
	// Sizes whose sum is small again.
	req := b.createRequest("c", 1, &api.GuestSpec{Name: "a", MemoryBytes: math.MaxUint64}, &api.GuestSpec{Name: "b", MemoryBytes: 1 << 20})
	if _, err := b.agent.reserve(b.cluster, req, []int{0, 1}); fault.ClassOf(err) != fault.NoSpace {
		t.Errorf("a guest of 2^64-1 bytes: %v, want class no-space", err)
	}
}

// TestEnter_OldOrdersAreNotCarriedOut has a destroy wait for its turn until its
// caller has given up, and another until its coordinator was deposed.
func TestEnter_OldOrdersAreNotCarriedOut(t *testing.T) {
	b := newBench(t, 1)
	if err := b.cluster.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() { errs <- b.agent.DestroyGuests(ctx, &api.DestroyGuestsRequest{Fence: b.fence, Cluster: "c"}) }()
	cancel()
	if err := <-errs; fault.ClassOf(err) != fault.Aborted {
		t.Errorf("an order that was withdrawn: %v", err)
	}
	waits := make(chan struct{})
	go func() {
		c, err := b.agent.fence(t.Context(), "c", b.fence)
		close(waits)
		if err == nil {
			_, _, err = b.agent.enter(t.Context(), c.name, b.fence)
		}
		errs <- err
	}()
	<-waits
	if _, err := b.agent.fence(t.Context(), "c", &api.Fence{Store: 1, Token: 2}); err != nil {
		t.Fatal(err)
	}
	b.fence = &api.Fence{Store: 1, Token: 2}
	b.cluster.end()
	if err := <-errs; fault.ClassOf(err) != fault.Stale {
		t.Errorf("an order of a deposed coordinator: %v", err)
	}
	if n := len(b.cluster.list()); n != 1 {
		t.Errorf("%d guests left, want 1", n)
	}
}

// TestRecover_ListsWhatEnded starts an agent whose guest ended meanwhile, and
// one that was only half made.
func TestRecover_ListsWhatEnded(t *testing.T) {
	b := newBench(t, 0)
	a := b.agent
	ended, err := json.Marshal(qemu.State{Version: 1, PID: 1, BootID: "an earlier one"})
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range []journal.Guest{
		{Cluster: "c", Name: "ended", Spec: json.RawMessage(`{"name":"ended","memoryBytes":"16777216"}`), Machine: ended, Created: true},
		{Cluster: "c", Name: "half", Spec: json.RawMessage(`{"name":"half"}`)},
	} {
		if err := a.journal.PutGuest(rec); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(a.memoryDir(rec.Cluster, rec.Name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.cluster.endRound(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := a.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Guests) != 1 || info.Guests[0].Name != "ended" || info.Guests[0].State != api.GuestState_GUEST_STATE_DEAD ||
		!strings.Contains(info.Guests[0].Reason, "ended while no agent ran") {
		t.Errorf("guests %v, want the dead one and why it is", info.Guests)
	}
	if err := a.DestroyGuests(t.Context(), &api.DestroyGuestsRequest{Fence: b.fence, Cluster: "c"}); err != nil {
		t.Fatal(err)
	}
	guests, err := a.journal.Guests()
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(a.cfg.MemoryDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(guests) != 0 || len(left) != 0 {
		t.Errorf("left: journal %v, memory %v", guests, left)
	}
}
