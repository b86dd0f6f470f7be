package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

// CheckGuests looks whether CreateGuests of the same request could succeed once the
// guests that the cluster has here are gone. It changes nothing, takes no turn and may run
// beside everything else. A restart asks before it ends a guest.
//
// It finds whatever can be found without a new QEMU process: guests that do not fit into the node's
// memory, machines that this QEMU cannot make or that differ from the checkpoint's, files
// and bridges that are not there, and pages that are missing. With read_data it also reads
// all pages, and so finds damaged ones.
func (a *Agent) CheckGuests(ctx context.Context, req *api.CheckGuestsRequest, report func(*api.CheckGuestsUpdate) error) error {
	create := req.GetCreate()
	if err := errors.Join(checkName("cluster", create.GetCluster()), checkCreate(create)); err != nil {
		return err
	}
	report, stop := withLifeSigns(report)
	defer stop()
	freed, err := a.freedBy(create.Cluster)
	if err != nil {
		return err
	}
	errs := []error{a.checkRoom(create, freed), a.checkBridges(create)}
	reader, err := a.openImages(ctx, create)
	errs = append(errs, err)
	for i, spec := range create.Guests {
		check := &guestCheck{agent: a, cluster: create.Cluster, spec: spec, freed: freed.memoryFiles}
		if len(create.Images) > 0 {
			check.image = create.Images[i]
		}
		if err := check.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("guest %s: %w", spec.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if reader != nil {
		if err := checkImages(ctx, reader, req, report); err != nil {
			return err
		}
	}
	return report(&api.CheckGuestsUpdate{Checked: true})
}

// lifeSignEvery spaces the updates of a check that has nothing to tell: a large base image
// may have to be read, and a node that is silent for long is given up.
const lifeSignEvery = 10 * time.Second

// withLifeSigns returns report with updates in between, until stop is called. Calls are
// never concurrent.
func withLifeSigns(report func(*api.CheckGuestsUpdate) error) (serial func(*api.CheckGuestsUpdate) error, stop func()) {
	var mu sync.Mutex                // serialises report
	last := &api.CheckGuestsUpdate{} // guarded by mu
	serial = func(u *api.CheckGuestsUpdate) error {
		mu.Lock()
		defer mu.Unlock()
		last = u
		return report(u)
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(lifeSignEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				mu.Lock()
				_ = report(last) // whoever has left shows in the call's context
				mu.Unlock()
			}
		}
	}()
	return serial, func() {
		close(ended)
		<-done
	}
}

// freed is what a cluster's guests will give back when they end.
type freed struct {
	memory      uint64 // that they count for in the node's memory
	memoryFiles uint64 // that their files take where guests' memory lies
}

func (a *Agent) freedBy(name string) (f freed, err error) {
	a.mu.Lock()
	c := a.clusters[name]
	a.mu.Unlock()
	if c == nil {
		return f, nil
	}
	f.memory = uint64(c.memory())
	for _, g := range append(c.list(), c.leftovers()...) {
		err := filepath.WalkDir(a.memoryDir(name, g.spec.Name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // ended meanwhile, or adopted
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			f.memoryFiles += uint64(st.Blocks) * 512 // the unit of st_blocks (inode(7))
			return nil
		})
		if err != nil {
			return f, fmt.Errorf("measure memory of guest %s: %w", g.spec.Name, err)
		}
	}
	return f, nil
}

// checkRoom refuses guests that do not fit even when the cluster's present ones are gone.
func (a *Agent) checkRoom(req *api.CreateGuestsRequest, f freed) error {
	left := uint64(max(a.memoryFree(), 0)) + f.memory
	for _, spec := range req.Guests {
		if spec.MemoryBytes > left {
			return a.noRoom(req.Cluster, spec, left)
		}
		left -= spec.MemoryBytes
	}
	return nil
}

// noRoom is the refusal of a guest for which only left bytes are free.
func (a *Agent) noRoom(cluster string, spec *api.GuestSpec, left uint64) error {
	return fault.New(fault.NoSpace, "guest %s of cluster %s needs %d MiB, node %s has %d MiB free for the cluster's guests",
		spec.Name, cluster, spec.MemoryBytes>>20, a.cfg.Name, left>>20)
}

func (a *Agent) checkBridges(req *api.CreateGuestsRequest) error {
	wanted := map[string]bool{}
	for _, u := range req.Uplinks {
		wanted[u.GetBridge()] = true
	}
	for _, g := range req.Guests {
		for _, n := range g.Nics {
			if n.Bridge != "" {
				wanted[n.Bridge] = true
			}
		}
	}
	var errs []error
	for bridge := range wanted {
		_, err := a.bridge(bridge)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// guestCheck looks at one guest that may be made later.
type guestCheck struct {
	agent   *Agent
	cluster string
	spec    *api.GuestSpec
	image   *api.GuestImage // nil: it boots afresh
	freed   uint64          // bytes of memory files that will be gone by then
}

func (c *guestCheck) run(ctx context.Context) error {
	if c.spec.Adopt != "" {
		return c.adopted(ctx)
	}
	errs := []error{c.bootFiles(), c.disks(ctx)}
	if c.image != nil && findObject(c.image, kindDevices, kindDevices) == nil {
		errs = append(errs, fault.New(fault.Corrupt, "its image lacks the device state"))
	}
	return errors.Join(append(errs, c.machine(ctx))...)
}

// bootFiles looks for the files that a fresh boot copies. An image has its own.
func (c *guestCheck) bootFiles() error {
	if c.image != nil {
		return nil
	}
	var errs []error
	for _, path := range []string{c.spec.Kernel, c.spec.Initrd} {
		if path != "" {
			errs = append(errs, c.readable(path))
		}
	}
	return errors.Join(errs...)
}

func (c *guestCheck) disks(ctx context.Context) error {
	var errs []error
	for _, d := range c.spec.Disks {
		chain, err := openChain(c.agent.paths, d.Path, qemu.DiskFormat(d.Format))
		if err == nil {
			err = c.agent.checkBases(ctx, c.image, d.Name, chain)
		}
		if err := errors.Join(err, closeDisks([]qemu.Disk{{Backing: chain}})); err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", d.Name, err))
		}
		if c.image != nil && !d.ReadOnly && findObject(c.image, kindDisk, d.Name) == nil {
			errs = append(errs, fault.New(fault.Corrupt, "its image lacks disk %s", d.Name))
		}
	}
	return errors.Join(errs...)
}

// readable refuses a file that cannot be opened.
func (c *guestCheck) readable(path string) error {
	f, err := c.agent.paths.open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// machine compares the machine that would be made with the one in the image.
func (c *guestCheck) machine(ctx context.Context) error {
	a := c.agent
	g := &guest{cluster: c.cluster, spec: c.spec, dir: a.guestDir(c.cluster, c.spec.Name)}
	if c.spec.Kernel != "" || findObject(c.image, kindBootFile, bootKernel) != nil {
		g.boot.Kernel = filepath.Join(g.dir, bootKernel)
	}
	if c.spec.Initrd != "" || findObject(c.image, kindBootFile, bootInitrd) != nil {
		g.boot.Initrd = filepath.Join(g.dir, bootInitrd)
	}
	var disks []qemu.Disk
	for _, d := range c.spec.Disks {
		disks = append(disks, diskOf(g, d))
	}
	var cards []qemu.NIC
	for _, n := range c.spec.Nics {
		cards = append(cards, qemu.NIC{Name: n.Name, MAC: n.Mac, MTU: int(n.Mtu), TAP: n.Bridge != ""})
	}
	is, err := a.machineConfig(g, disks, cards, a.memoryDir(c.cluster, c.spec.Name)).Preview(ctx, c.freed)
	if err != nil {
		return previewFault(err)
	}
	if c.image == nil {
		return nil
	}
	var was qemu.Description
	if err := json.Unmarshal(c.image.Machine, &was); err != nil {
		return fault.Wrap(fault.Corrupt, err, "machine description")
	}
	is.KernelSHA256, is.InitrdSHA256 = was.KernelSHA256, was.InitrdSHA256 // the image holds these files
	if err := was.Compatible(is); err != nil {
		return fault.Wrap(fault.Mismatch, err, "node %s", a.cfg.Name)
	}
	return nil
}

// previewFault gives the refusal of a machine its class: a specification that suits
// another node need not be wrong.
func previewFault(err error) error {
	if errors.Is(err, vmm.ErrUnsupported) {
		return fault.Wrap(fault.Mismatch, err, "")
	}
	if errors.Is(err, vmm.ErrNoSpace) || errors.Is(err, vmm.ErrUnfitMemory) {
		return machineFault(err)
	}
	return fault.Wrap(fault.Invalid, err, "")
}

// adopted looks whether somebody's QEMU is in the state that it must be in.
func (c *guestCheck) adopted(ctx context.Context) error {
	if err := c.agent.paths.checkSocket(c.spec.Adopt); err != nil {
		return err
	}
	status, err := c.adoptedStatus(ctx)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "no QEMU answers at %s", c.spec.Adopt)
	}
	return fitToAdopt(c.spec, status, c.image != nil)
}

// adoptedStatus asks the QEMU, through the one connection that its monitor serves if that
// is ours already. Once ours has ended, another may listen at its socket.
func (c *guestCheck) adoptedStatus(ctx context.Context) (vmm.Status, error) {
	if g, err := c.agent.findGuest(c.cluster, c.spec.Name); err == nil && adopted(g) {
		if status, err := g.machine.Status(ctx); err != nil || status != vmm.StatusDead {
			return status, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, statusBudget)
	defer cancel()
	return qemu.AskStatus(ctx, c.spec.Adopt)
}

// checkImages looks whether the packs hold all that the images need.
func checkImages(ctx context.Context, reader *repository.Reader, req *api.CheckGuestsRequest, report func(*api.CheckGuestsUpdate) error) error {
	var total uint64
	for _, image := range req.Create.Images {
		for _, o := range image.GetObjects() {
			total += o.SizeBytes
		}
	}
	updates := newReporter(func(u *api.CreateGuestsUpdate) error {
		return report(&api.CheckGuestsUpdate{DoneBytes: u.DoneBytes, TotalBytes: u.TotalBytes})
	})
	done := newMeter(total, func(done, total uint64) {
		updates.send(&api.CreateGuestsUpdate{DoneBytes: done, TotalBytes: total})
	})
	g, gctx := errgroup.WithContext(ctx)
	for _, image := range req.Create.Images {
		g.Go(func() error {
			for _, o := range image.GetObjects() {
				if err := checkObject(gctx, reader, o, req.ReadData, done.piece()); err != nil {
					return fmt.Errorf("guest %s: %s %s: %w", image.Guest, o.Kind, o.Name, repositoryFault(err))
				}
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), updates.err())
}

func checkObject(ctx context.Context, reader *repository.Reader, o *api.ImageObject, read bool, done func(int64)) error {
	ref, err := refOf(o)
	if err != nil {
		return err
	}
	if read {
		return reader.ReadImage(ctx, ref, nowhere{}, repository.ReadOptions{Progress: done})
	}
	if _, err := reader.UniquePages(ctx, []repository.Ref{ref}); err != nil {
		return err
	}
	done(ref.Size)
	return nil
}

// nowhere takes what is only to be verified.
type nowhere struct{}

// WriteAt implements io.WriterAt.
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
