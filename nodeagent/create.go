package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"fermata/imageio/repository"
	"fermata/nodeagent/fabric"
	"fermata/nodeagent/journal"
	"fermata/nodeagent/undo"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// maxGuests bounds one request. A node of today's largest machines runs fewer.
const maxGuests = 1024

// CreateGuests makes the guests of one cluster on this node, stopped and with
// closed ingress, from nothing or from their images. It calls report as it
// goes; report is never called by two goroutines at once.
//
// It is idempotent: guests that are complete already, in the same life of the
// cluster, are left alone. On error nothing made by this call is left.
func (a *Agent) CreateGuests(ctx context.Context, req *api.CreateGuestsRequest, report func(*api.CreateGuestsUpdate) error) (err error) {
	if err := checkCreate(req); err != nil {
		return err
	}
	c, err := a.fence(req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()

	missing, err := a.missingGuests(c, req)
	if err != nil {
		return err
	}
	if err := a.checkRoom(c, missing); err != nil {
		return err
	}
	var reader *repository.Reader
	if len(req.Images) > 0 {
		if err := a.repo.Refresh(ctx); err != nil {
			return fmt.Errorf("look for new packs: %w", err)
		}
		if reader, err = a.repo.NewReader(ctx, req.Packs); err != nil {
			return fmt.Errorf("open packs: %w", err)
		}
	}
	err = a.update(c, func(rec *journal.Cluster) {
		rec.Epoch, rec.Released = req.Epoch, false
		rec.Peers = map[string]string{}
		for _, p := range req.Peers {
			rec.Peers[p.Node] = p.FabricAddress
		}
	})
	if err != nil {
		return err
	}
	if err := a.joinFabric(c); err != nil {
		return err
	}

	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.RunUnlessReleased(ctx)) }()
	updates := newReporter(report)
	g, gctx := errgroup.WithContext(ctx)
	for i, spec := range req.Guests {
		if _, ok := missing[spec.Name]; !ok {
			updates.send(&api.CreateGuestsUpdate{Guest: spec.Name, Created: true})
			continue
		}
		var image *api.GuestImage
		if len(req.Images) > 0 {
			image = req.Images[i]
		}
		g.Go(func() error {
			m := maker{agent: a, cluster: c, spec: spec, image: image, reader: reader, steps: &steps, updates: updates}
			if err := m.make(gctx); err != nil {
				return fmt.Errorf("create guest %s: %w", spec.Name, err)
			}
			return nil
		})
	}
	if err := errors.Join(g.Wait(), updates.err()); err != nil {
		return err
	}
	c.mu.Lock()
	started := c.round != nil
	c.mu.Unlock()
	if !started {
		if err := a.startRounds(c, nil); err != nil {
			return err
		}
	}
	steps.Release()
	return nil
}

// joinFabric tells the switch the life and the peers of a cluster, from its
// record. A life that left no guests here is ended first.
func (a *Agent) joinFabric(c *cluster) error {
	if len(c.list()) == 0 {
		if err := a.fabric.RemoveCluster(c.name); err != nil {
			return err
		}
	}
	rec := c.record()
	if err := a.fabric.CreateCluster(c.name, rec.Epoch); err != nil {
		return err
	}
	peers := make([]fabric.Peer, 0, len(rec.Peers))
	for node, addr := range rec.Peers {
		peers = append(peers, fabric.Peer{Node: node, Address: addr})
	}
	return a.fabric.SetPeers(c.name, peers)
}

func checkCreate(req *api.CreateGuestsRequest) error {
	switch n := len(req.GetGuests()); {
	case n == 0:
		return fault.New(fault.Invalid, "create: no guests")
	case n > maxGuests:
		return fault.New(fault.Invalid, "create: %d guests, limit %d", n, maxGuests)
	}
	if n := len(req.Images); n != 0 && n != len(req.Guests) {
		return fault.New(fault.Invalid, "create: %d images for %d guests", n, len(req.Guests))
	}
	if req.Epoch == 0 {
		return fault.New(fault.Invalid, "create: epoch missing")
	}
	var errs []error
	for i, spec := range req.Guests {
		errs = append(errs, checkName("guest", spec.GetName()))
		for _, n := range spec.GetNics() {
			errs = append(errs, checkName("card", n.GetName()), checkName("network", n.GetNetwork()))
			if mac, err := net.ParseMAC(n.GetMac()); err != nil || len(mac) != 6 {
				errs = append(errs, fault.New(fault.Invalid, "guest %s: card %s: %q is not a MAC address", spec.Name, n.Name, n.Mac))
			}
		}
		for _, d := range spec.GetDisks() {
			errs = append(errs, checkName("disk", d.GetName()))
		}
		if len(req.Images) > 0 && req.Images[i].GetGuest() != spec.GetName() {
			errs = append(errs, fault.New(fault.Invalid, "create: image %d is of guest %q, not %q", i, req.Images[i].GetGuest(), spec.GetName()))
		}
	}
	return errors.Join(errs...)
}

// missingGuests returns what is still to be made of req.
func (a *Agent) missingGuests(c *cluster, req *api.CreateGuestsRequest) (map[string]*api.GuestSpec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	missing := map[string]*api.GuestSpec{}
	for _, spec := range req.Guests {
		have, ok := c.guests[spec.Name]
		if !ok {
			missing[spec.Name] = spec
			continue
		}
		if c.rec.Epoch != req.Epoch || !proto.Equal(have.spec, spec) {
			return nil, fault.New(fault.Exists, "guest %s of cluster %s exists from epoch %d", spec.Name, c.name, c.rec.Epoch)
		}
	}
	return missing, nil
}

// checkRoom refuses guests whose memory does not fit beside what is there.
func (a *Agent) checkRoom(c *cluster, missing map[string]*api.GuestSpec) error {
	var need int64
	for _, spec := range missing {
		need += int64(spec.MemoryBytes)
	}
	if free := a.memoryFree(); need > free {
		return fault.New(fault.NoSpace, "cluster %s needs %d MiB for its guests, node %s has %d MiB free", c.name, need>>20, a.cfg.Name, free>>20)
	}
	return nil
}

// maker makes one guest.
type maker struct {
	agent   *Agent
	cluster *cluster
	spec    *api.GuestSpec
	image   *api.GuestImage // nil for a fresh boot
	reader  *repository.Reader
	steps   *undo.Stack
	updates *reporter
}

func (m *maker) make(ctx context.Context) (err error) {
	a := m.agent
	// The journal names the guest before anything of it exists, so that an agent
	// that dies here is followed by one that cleans up.
	spec, err := encodeSpec(m.spec)
	if err != nil {
		return err
	}
	rec := journal.Guest{Cluster: m.cluster.name, Name: m.spec.Name, Spec: spec}
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	if err := m.steps.Add(ctx, m.forget); err != nil {
		return err
	}
	g := &guest{cluster: m.cluster.name, spec: m.spec, dir: a.guestDir(m.cluster.name, m.spec.Name)}
	memDir := a.memoryDir(m.cluster.name, m.spec.Name)
	for _, dir := range []string{g.dir, memDir} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	files, err := m.placeFiles(ctx, g)
	if err != nil {
		return err
	}
	cards, err := m.makeCards(ctx, g)
	defer func() { err = errors.Join(err, closeCards(cards)) }()
	if err != nil {
		return err
	}
	cfg := a.machineConfig(g, files, cards, memDir)
	cfg.Incoming = m.image != nil
	g.machine, err = qemu.Launch(ctx, cfg)
	if err != nil {
		return launchFault(err)
	}
	if err := m.steps.Add(ctx, g.machine.Kill); err != nil {
		return err
	}
	if rec.Machine, err = json.Marshal(g.machine.State()); err != nil {
		return fmt.Errorf("encode machine: %w", err)
	}
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	var injected int
	if m.image != nil {
		if injected, err = m.restore(ctx, g); err != nil {
			return err
		}
	}
	rec.Created = true
	if err := a.journal.PutGuest(rec); err != nil {
		return err
	}
	m.cluster.mu.Lock()
	m.cluster.guests[g.spec.Name] = g
	m.cluster.mu.Unlock()
	m.updates.send(&api.CreateGuestsUpdate{Guest: g.spec.Name, Created: true, FramesInjected: uint64(injected)})
	return nil
}

// forget undoes the journal entry and the files of a guest that was not completed.
func (m *maker) forget(context.Context) error {
	m.cluster.mu.Lock()
	delete(m.cluster.guests, m.spec.Name)
	m.cluster.mu.Unlock()
	if err := m.agent.removeFiles(m.cluster.name, m.spec.Name); err != nil {
		return err
	}
	return m.agent.journal.DeleteGuest(m.cluster.name, m.spec.Name)
}

// makeCards makes a socket pair for each NIC and joins its near end to the
// switch, with closed ingress.
func (m *maker) makeCards(ctx context.Context, g *guest) ([]qemu.NIC, error) {
	var cards []qemu.NIC
	for _, spec := range g.spec.Nics {
		near, far, err := fabric.NewPair()
		if err != nil {
			return nil, err
		}
		// QEMU inherits both ends, so the pair outlives this agent. The switch
		// takes the files over; QEMU gets copies.
		card := qemu.NIC{Name: spec.Name, MAC: spec.Mac}
		if card.File, err = dupFile(far); err == nil {
			card.Keep, err = dupFile(near)
		}
		cards = append(cards, card)
		if err != nil {
			return cards, errors.Join(err, near.Close(), far.Close())
		}
		port, err := m.agent.attachPort(g, spec, near, far)
		if err != nil {
			return cards, err
		}
		if err := m.steps.Add(ctx, func(context.Context) error { return port.Detach() }); err != nil {
			return cards, err
		}
		g.nics = append(g.nics, nic{spec: spec, port: port})
	}
	return cards, nil
}

// dupFile returns a second descriptor of f. It must not use f.Fd, which may
// change the file's mode for all who share it.
func dupFile(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeCards(cards []qemu.NIC) error {
	var errs []error
	for _, c := range cards {
		for _, f := range []*os.File{c.File, c.Keep} {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// attachPort joins one card to its network, gated. The switch owns both files
// from here on.
func (a *Agent) attachPort(g *guest, spec *api.NICSpec, near, far *os.File) (*fabric.Port, error) {
	mac, err := net.ParseMAC(spec.Mac)
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Invalid, err, "card %s", spec.Name), near.Close(), far.Close())
	}
	return a.fabric.Attach(fabric.PortConfig{
		Cluster: g.cluster, Network: spec.Network, Guest: g.spec.Name, NIC: spec.Name,
		MAC: mac, FabricEnd: near, GuestEnd: far, Gated: true,
	})
}

// machineConfig translates a guest's specification for the driver.
func (a *Agent) machineConfig(g *guest, disks []qemu.Disk, cards []qemu.NIC, memDir string) qemu.Config {
	return qemu.Config{
		Binary: a.cfg.QEMU, Name: g.spec.Name,
		Accel: qemu.Accel(g.spec.Accel), Machine: g.spec.Machine, CPU: g.spec.Cpu,
		MemoryBytes: g.spec.MemoryBytes, VCPUs: int(g.spec.Vcpus),
		Kernel: g.boot.Kernel, Initrd: g.boot.Initrd, Cmdline: g.spec.Cmdline,
		Disks: disks, NICs: cards,
		Dir: g.dir, MemoryDir: memDir, Info: &a.qemu,
	}
}

func overlayPath(dir, disk string) string { return filepath.Join(dir, "disk-"+disk+".qcow2") }
