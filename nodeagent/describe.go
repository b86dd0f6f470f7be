package nodeagent

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"fermata/nodeagent/fabric"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

// statusBudget bounds the question for one guest's run state. A monitor that
// does not answer must not hide the other guests.
const statusBudget = time.Second

// Describe returns what the node is and what runs on it.
func (a *Agent) Describe(ctx context.Context) (*api.NodeInfo, error) {
	info := &api.NodeInfo{
		Name: a.cfg.Name, Address: a.cfg.Advertise, FabricAddress: a.cfg.FabricAdvertise,
		MemoryBytes: uint64(a.cfg.MemoryBytes), MemoryFreeBytes: uint64(max(a.memoryFree(), 0)),
		Cpus: uint32(runtime.NumCPU()), QemuVersion: a.qemu.Version.String(), Kernel: kernelRelease(),
		Kvm: canKVM(), Version: a.cfg.Version, Incarnation: a.incarnation,
		Bridges: slices.Sorted(maps.Keys(a.cfg.Bridges)), QemuSupport: support(a.qemu),
		RepositoryProblem: a.repo.why(),
	}
	if id := a.cfg.Identity; id != nil {
		info.CertificateNotAfterUnixNs = id.NotAfter().UnixNano()
	}
	// All are asked at once: however many monitors hang, the answer is not late.
	var wg sync.WaitGroup
	for _, c := range a.allClusters() {
		wired, err := a.plane.ClusterStats(c.name)
		if err != nil && !errors.Is(err, fabric.ErrUnknownCluster) {
			a.log.Warn("data plane does not say what frames it has carried", "cluster", c.name, "error", err)
		}
		for _, g := range c.list() {
			s := a.statusOf(g)
			s.Nics = cardStatus(g, wired.Ports)
			addEnding(s, c.endingOf(g))
			info.Guests = append(info.Guests, s)
			wg.Go(func() { askMachine(ctx, c, g, s) })
		}
		info.Guests = append(info.Guests, a.lostGuests(c)...)
		info.Uplinks = append(info.Uplinks, a.uplinkStatus(c, wired.Uplinks)...)
	}
	wg.Wait()
	return info, nil
}

// support is what of this QEMU a specification can ask for: versioned PC machines.
func support(info qemu.Info) *api.QEMUSupport {
	if len(info.MachineTypes) == 0 {
		return nil // it could not be asked
	}
	out := &api.QEMUSupport{CpuModels: info.CPUModels}
	for _, m := range info.MachineTypes {
		if strings.HasPrefix(m, "pc-") {
			out.MachineTypes = append(out.MachineTypes, m)
		}
	}
	return out
}

// lostGuests lists what is only to be destroyed.
func (a *Agent) lostGuests(c *cluster) []*api.GuestStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*api.GuestStatus
	for _, g := range byName(c.partial) {
		if g.lost != api.GuestState_GUEST_STATE_UNSPECIFIED {
			s := a.statusOf(g)
			s.State = g.lost
			addEnding(s, g.ending)
			out = append(out, s)
		}
	}
	return out
}

// statusOf returns what is known of a guest without asking anybody.
func (a *Agent) statusOf(g *guest) *api.GuestStatus {
	return &api.GuestStatus{
		Cluster: g.cluster, Name: g.spec.Name, Node: a.cfg.Name, State: api.GuestState_GUEST_STATE_UNKNOWN,
		MemoryBytes: g.spec.MemoryBytes, Vcpus: g.spec.Vcpus, Adopted: adopted(g), Epoch: g.epoch,
	}
}

// addEnding adds how the guest has ended.
func addEnding(s *api.GuestStatus, e *journal.Ending) {
	if e != nil {
		s.State, s.Reason, s.EndedUnixNs = api.GuestState_GUEST_STATE_DEAD, e.Why, e.UnixNS
	}
}

// askMachine adds what the machine of a complete guest says.
func askMachine(ctx context.Context, c *cluster, g *guest, s *api.GuestStatus) {
	ctx, cancel := context.WithTimeout(ctx, statusBudget)
	defer cancel()
	s.Pid = int32(g.machine.PID())
	if adopted(g) {
		found := g.machine.State().Config
		s.MemoryBytes, s.Vcpus = found.MemoryBytes, uint32(found.VCPUs)
	}
	if status, err := g.machine.Status(ctx); err == nil {
		switch status {
		case vmm.StatusRunning:
			s.State = api.GuestState_GUEST_STATE_RUNNING
		case vmm.StatusPaused, vmm.StatusIncoming, vmm.StatusFailed:
			s.State = api.GuestState_GUEST_STATE_PAUSED
		case vmm.StatusIOError:
			s.State, s.Reason = api.GuestState_GUEST_STATE_PAUSED, c.stallReason(g)
		case vmm.StatusDead:
			s.State = api.GuestState_GUEST_STATE_DEAD
		}
	}
	for _, n := range g.spec.Nics {
		if n.Bridge != "" {
			s.Nics = append(s.Nics, tapStatus(g, n))
		}
	}
}

// cardStatus is what a guest's cards on the fabric have carried.
func cardStatus(g *guest, ports []fabric.PortStatus) []*api.NICStatus {
	var all []*api.NICStatus
	for _, n := range g.nics {
		card := &api.NICStatus{Name: n.Name, Network: n.Network, Mac: n.Mac}
		all = append(all, card)
		for _, st := range ports {
			if st.PortKey != (fabric.PortKey{Guest: g.spec.Name, NIC: n.Name}) {
				continue
			}
			card.FramesReceived, card.FramesSent, card.FramesDropped, card.FramesHeld = st.Received, st.Sent, st.Dropped.Total(), st.Waiting
			card.FramesRecorded, card.FramesInjected, card.Drops = st.Recorded, st.Injected, st.Dropped.ByReason()
			card.FramesSpoofed = st.Spoofed
		}
	}
	return all
}

func canKVM() bool {
	accel, _ := qemu.ProbeAccel()
	return accel == qemu.KVM
}

// memoryFree returns what the node may still give to guests, in bytes.
func (a *Agent) memoryFree() int64 {
	free := a.cfg.MemoryBytes
	for _, c := range a.allClusters() {
		free -= c.memory()
	}
	return free
}

func (a *Agent) findGuest(cluster, name string) (*guest, error) {
	a.mu.Lock()
	c, ok := a.clusters[cluster]
	a.mu.Unlock()
	if ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		if g, ok := c.guests[name]; ok {
			return g, nil
		}
	}
	return nil, fault.New(fault.NotFound, "guest %s of cluster %s is not on node %s", name, cluster, a.cfg.Name)
}
