package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"fermata/imageio/extent"
	"fermata/imageio/repository"
	"fermata/nodeagent/journal"
	"fermata/nodeagent/undo"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/guestport"
	"fermata/vmm/qemu"
)

// maxGuests bounds one request. A node of today's largest machines runs fewer.
const maxGuests = 1024

// maxDevices bounds the cards and disks of a guest before anything is made of
// them; a machine has fewer places on its bus.
const maxDevices = 32

// CreateGuests makes the guests of one cluster on this node, stopped and with
// closed ingress, from nothing or from their images. It calls report as it
// goes; report is never called by two goroutines at once.
//
// It is idempotent: guests that are complete already, in the same life of the
// cluster, are left alone. On error nothing made by this call is left; what
// could not be removed is listed by Describe and goes with DestroyGuests.
func (a *Agent) CreateGuests(ctx context.Context, req *api.CreateGuestsRequest, report func(*api.CreateGuestsUpdate) error) (err error) {
	if err := checkCreate(req); err != nil {
		return err
	}
	c, leave, err := a.enter(ctx, req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	defer leave()
	defer a.tell()

	updates := newReporter(report)
	missing, err := missingGuests(c, req, updates)
	if err != nil || len(missing) == 0 {
		return errors.Join(err, updates.err())
	}
	for _, g := range c.leftovers() {
		if err := a.destroyGuest(ctx, c, g); err != nil {
			return fault.Wrap(fault.Unavailable, err, "remove what is left of guest %s", g.spec.Name)
		}
	}
	makers, err := a.reserve(c, req, missing)
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.RunUnlessReleased(ctx)) }()
	_ = steps.Add(ctx, func(context.Context) error { return a.leaveFabric(c) }) // fails only when run
	for _, m := range makers {
		m.updates = updates
		_ = steps.Add(ctx, func(ctx context.Context) error { return a.destroyGuest(ctx, c, m.guest) })
	}
	reader, err := a.openImages(ctx, req)
	if err != nil {
		return err
	}
	if err := a.beginLife(c, req); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range makers {
		m.reader = reader
		g.Go(func() error {
			if err := m.make(gctx); err != nil {
				return fmt.Errorf("create guest %s: %w", m.guest.spec.Name, err)
			}
			return nil
		})
	}
	if err := errors.Join(g.Wait(), updates.err()); err != nil {
		return err
	}
	if c.rounds() == nil {
		if err := a.startRounds(c, nil); err != nil {
			return err
		}
	}
	steps.Release()
	return nil
}

// missingGuests returns which guests of req are still to be made, and reports
// the others as created.
func missingGuests(c *cluster, req *api.CreateGuestsRequest, updates *reporter) ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.guests) > 0 && c.rec.Epoch != req.Epoch {
		return nil, fault.New(fault.Exists, "cluster %s has guests of epoch %d", c.name, c.rec.Epoch)
	}
	var missing []int
	for i, spec := range req.Guests {
		have, ok := c.guests[spec.Name]
		switch {
		case !ok:
			missing = append(missing, i)
		case !proto.Equal(have.spec, spec):
			return nil, fault.New(fault.Exists, "guest %s of cluster %s exists, and is made otherwise", spec.Name, c.name)
		default:
			updates.send(&api.CreateGuestsUpdate{Guest: spec.Name, Created: true, FramesInjected: have.injected})
		}
	}
	// A guest that runs already would be told to wait for its release again.
	if len(missing) > 0 && len(c.guests) > 0 && c.rec.Released {
		return nil, fault.New(fault.Exists, "cluster %s runs since epoch %d", c.name, c.rec.Epoch)
	}
	return missing, nil
}

// reserve lists the missing guests as partial, so that their memory counts from
// now on, or refuses them if it does not fit beside what is there.
func (a *Agent) reserve(c *cluster, req *api.CreateGuestsRequest, missing []int) ([]*maker, error) {
	a.room.Lock()
	defer a.room.Unlock()
	free := uint64(max(a.memoryFree(), 0))
	var need uint64
	makers := make([]*maker, 0, len(missing))
	for _, i := range missing {
		spec := req.Guests[i]
		if spec.MemoryBytes > free || need+spec.MemoryBytes > free {
			return nil, a.noRoom(c.name, spec, free-need)
		}
		need += spec.MemoryBytes
		m := &maker{agent: a, cluster: c, guest: &guest{cluster: c.name, spec: spec, dir: a.guestDir(c.name, spec.Name), epoch: req.Epoch}}
		if len(req.Images) > 0 {
			m.image = req.Images[i]
		}
		makers = append(makers, m)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range makers {
		c.partial[m.guest.spec.Name] = m.guest
	}
	return makers, nil
}

// openImages returns what the images of req are read from; nil if it has none.
func (a *Agent) openImages(ctx context.Context, req *api.CreateGuestsRequest) (*repository.Reader, error) {
	if len(req.Images) == 0 {
		return nil, nil
	}
	repo, err := a.storage(ctx) // bounded: the call has the cluster's turn
	if err != nil {
		return nil, err
	}
	if err := repo.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("look for new packs: %w", repositoryFault(err))
	}
	reader, err := repo.NewReader(ctx, req.Packs)
	if err != nil {
		return nil, fmt.Errorf("open packs: %w", repositoryFault(err))
	}
	return reader, nil
}

// beginLife journals the life of the cluster that req begins or adds to, and
// joins it to the wire.
func (a *Agent) beginLife(c *cluster, req *api.CreateGuestsRequest) error {
	err := a.update(c, func(rec *journal.Cluster) {
		rec.Epoch, rec.Released = req.Epoch, false
		rec.Peers, rec.Cards = map[string]string{}, map[string][]journal.Card{}
		for _, p := range req.Peers {
			rec.Peers[p.Node] = p.FabricAddress
			for _, card := range p.Cards {
				rec.Cards[p.Node] = append(rec.Cards[p.Node], journal.Card{Network: card.Network, MAC: card.Mac})
			}
		}
		rec.Uplinks = uplinksOf(req)
	})
	if err != nil {
		return err
	}
	c.setRunning(false)
	if err := a.joinFabric(c, req.Epoch); err != nil {
		return err
	}
	return a.openUplinks(c.name, c.record().Uplinks, nil)
}

// leaveFabric takes a cluster without guests off the wire.
func (a *Agent) leaveFabric(c *cluster) error {
	if len(c.list()) > 0 {
		return nil
	}
	return ignoreClosed(a.plane.RemoveCluster(c.name))
}

// joinFabric tells the switch the life and the peers of a cluster, from its
// record, and the epoch that its guests have come to. A life that left no guests here
// is ended first.
func (a *Agent) joinFabric(c *cluster, epoch uint64) error {
	if err := a.leaveFabric(c); err != nil {
		return err
	}
	c.wired = a.plane.Incarnation()
	rec := c.record()
	if err := a.plane.ContinueCluster(c.name, rec.Epoch, epoch); err != nil {
		return err
	}
	return a.plane.SetPeers(c.name, peersOf(rec))
}

func checkCreate(req *api.CreateGuestsRequest) error {
	switch n := len(req.GetGuests()); {
	case n == 0:
		return fault.New(fault.Invalid, "create: no guests")
	case n > maxGuests:
		return fault.New(fault.Invalid, "create: %d guests, limit %d", n, maxGuests)
	}
	if n := len(req.GetUplinks()); n > maxUplinks {
		return fault.New(fault.Invalid, "create: %d uplinks, limit %d", n, maxUplinks)
	}
	if n := len(req.Images); n != 0 && n != len(req.Guests) {
		return fault.New(fault.Invalid, "create: %d images for %d guests", n, len(req.Guests))
	}
	if req.Epoch == 0 {
		return fault.New(fault.Invalid, "create: epoch missing")
	}
	var errs []error
	names := map[string]bool{}
	for i, spec := range req.Guests {
		errs = append(errs, checkGuest(spec))
		if names[spec.GetName()] {
			errs = append(errs, fault.New(fault.Invalid, "create: guest %s: given twice", spec.GetName()))
		}
		names[spec.GetName()] = true
		if len(req.Images) > 0 && req.Images[i].GetGuest() != spec.GetName() {
			errs = append(errs, fault.New(fault.Invalid, "create: image %d is of guest %q, not %q", i, req.Images[i].GetGuest(), spec.GetName()))
		}
	}
	return errors.Join(errs...)
}

// checkGuest refuses what would cost something before the driver refuses it.
func checkGuest(spec *api.GuestSpec) error {
	errs := []error{checkName("guest", spec.GetName()), checkAdopt(spec)}
	invalid := func(format string, args ...any) {
		errs = append(errs, fault.New(fault.Invalid, "guest "+spec.GetName()+": "+format, args...))
	}
	if n := len(spec.GetNics()) + len(spec.GetDisks()); n > maxDevices {
		invalid("%d cards and disks, limit %d", n, maxDevices)
		return errors.Join(errs...)
	}
	names := map[string]bool{}
	for _, n := range spec.GetNics() {
		errs = append(errs, checkName("card", n.GetName()), checkName("network", n.GetNetwork()))
		if n.GetBridge() != "" {
			errs = append(errs, checkName("bridge", n.GetBridge()))
		}
		if mac, err := net.ParseMAC(n.GetMac()); err != nil || len(mac) != 6 {
			invalid("card %s: %q is not a MAC address", n.GetName(), n.GetMac())
		}
		if names["card "+n.GetName()] {
			invalid("card %s: given twice", n.GetName())
		}
		names["card "+n.GetName()] = true
	}
	for _, d := range spec.GetDisks() {
		errs = append(errs, checkName("disk", d.GetName()))
		if !filepath.IsAbs(d.GetPath()) {
			invalid("disk %s: path %q is not absolute", d.GetName(), d.GetPath())
		}
		if names["disk "+d.GetName()] {
			invalid("disk %s: given twice", d.GetName())
		}
		names["disk "+d.GetName()] = true
	}
	return errors.Join(errs...)
}

// maker makes one guest. What it leaves when it fails, destroyGuest removes.
type maker struct {
	agent   *Agent
	cluster *cluster
	guest   *guest
	image   *api.GuestImage    // nil for a fresh boot
	reader  *repository.Reader // nil for a fresh boot
	updates *reporter
}

func (m *maker) make(ctx context.Context) (err error) {
	a, g := m.agent, m.guest
	// The journal names the guest before anything of it exists, so that an agent
	// that dies here is followed by one that cleans up.
	spec, err := encodeSpec(g.spec)
	if err != nil {
		return err
	}
	rec := journal.Guest{Cluster: m.cluster.name, Name: g.spec.Name, Spec: spec, Epoch: g.epoch}
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	start := m.launch
	if g.spec.Adopt != "" {
		start = m.adopt
	}
	if err := start(ctx); err != nil {
		return err
	}
	if rec.Machine, err = json.Marshal(g.machine.State()); err != nil {
		return fmt.Errorf("encode machine: %w", err)
	}
	if rec.Confidential, rec.Zeroed, err = m.hide(ctx); err != nil {
		return err
	}
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	if m.image != nil {
		if err := m.restore(ctx); err != nil {
			return err
		}
	}
	rec.Created = true
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	if err := failpoint.Inject(ctx, failpoint.AgentAfterCreate); err != nil {
		return err
	}
	a.openTool(m.cluster, g)
	m.cluster.complete(g)
	a.watch(m.cluster, g)
	a.identifyLater(g)
	m.updates.send(&api.CreateGuestsUpdate{Guest: g.spec.Name, Created: true, FramesInjected: g.injected})
	return nil
}

// hide makes confidential what the specification names and, of a guest that is
// restored, what it had registered. zeroed is all of that then.
func (m *maker) hide(ctx context.Context) (registered, zeroed []extent.Extent, err error) {
	set, err := addressesOf(m.image.GetConfidential())
	if err != nil {
		return nil, nil, err
	}
	var restored extent.Set
	if m.image != nil {
		given, err := addressesOf(m.guest.spec.GetConfidential())
		if err != nil {
			return nil, nil, err
		}
		restored = set.Union(given)
	}
	if err := m.agent.hides(ctx, m.guest, set, restored); err != nil {
		return nil, nil, err
	}
	return slices.Collect(set.All()), slices.Collect(restored.All()), nil
}

// launch makes the guest's machine.
func (m *maker) launch(ctx context.Context) (err error) {
	a, g := m.agent, m.guest
	memDir := a.memoryDir(m.cluster.name, g.spec.Name)
	if err := freshDirectories(g.dir, memDir); err != nil {
		return err
	}
	if err := m.placeFiles(ctx); err != nil {
		return err
	}
	disks, err := m.placeDisks(ctx)
	defer func() { err = errors.Join(err, closeDisks(disks)) }()
	if err != nil {
		return err
	}
	cards, err := m.makeCards()
	defer func() { err = errors.Join(err, closeCards(cards)) }()
	if err != nil {
		return err
	}
	cfg := a.machineConfig(g, disks, cards, memDir)
	cfg.Incoming = m.image != nil
	launched, err := qemu.Launch(ctx, cfg)
	if err != nil {
		return fmt.Errorf("launch: %w", machineFault(err))
	}
	g.machine = launched
	if len(g.nics) == 0 {
		return nil
	}
	return a.plane.Belongs(g.cluster, g.spec.Name, launched.PID())
}

func freshDirectories(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	return nil
}

// machineConfig translates a guest's specification for the driver.
func (a *Agent) machineConfig(g *guest, disks []qemu.Disk, cards []qemu.NIC, memDir string) qemu.Config {
	return qemu.Config{
		Binary: a.cfg.QEMU, Name: g.spec.Name,
		Accel: qemu.Accel(g.spec.Accel), Machine: g.spec.Machine, CPU: g.spec.Cpu,
		MemoryBytes: g.spec.MemoryBytes, VCPUs: int(g.spec.Vcpus),
		Kernel: g.boot.Kernel, Initrd: g.boot.Initrd, Cmdline: g.spec.Cmdline,
		Disks: disks, NICs: cards, GuestAgent: g.spec.GuestAgent, ToolPort: toolPort(g.spec),
		Dir: g.dir, MemoryDir: memDir, Info: &a.qemu, Confine: a.jail.of(g.cluster, g.spec.Name),
	}
}

// toolPort is the name of the port for a guest's tool, empty for none.
func toolPort(spec *api.GuestSpec) string {
	if spec.GetGuestTool() {
		return guestport.PortName
	}
	return ""
}

func overlayPath(dir, disk string) string { return filepath.Join(dir, "disk-"+disk+".qcow2") }
