package nodeagent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"

	"fermata/nodeagent/fabric"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// cluster is this node's part of one cluster.
type cluster struct {
	name string // immutable
	op   sync.Mutex

	mu     sync.Mutex
	rec    journal.Cluster   // guarded by mu; what the journal holds
	guests map[string]*guest // guarded by mu; complete ones only
	round  *roundRun         // guarded by mu; nil when none runs
}

// guest is one complete guest. Immutable once in cluster.guests.
type guest struct {
	cluster string
	spec    *api.GuestSpec
	dir     string // runtime directory
	boot    bootFiles
	machine *qemu.Machine
	nics    []nic
}

// nic is a guest's card and its port on the switch.
type nic struct {
	spec *api.NICSpec
	port *fabric.Port
}

// bootFiles are the paths QEMU loads a kernel from; empty when the guest boots
// from a disk.
type bootFiles struct{ Kernel, Initrd string }

// guestDir returns the runtime directory of a guest.
func (a *Agent) guestDir(cluster, name string) string {
	return filepath.Join(a.guestsDir(), cluster+"."+name)
}

// memoryDir returns where the guest's memory file lies.
func (a *Agent) memoryDir(cluster, name string) string {
	return filepath.Join(a.cfg.MemoryDir, filepath.Base(a.guestDir(cluster, name)))
}

// fence admits a coordinator's call on a cluster, or refuses one that was
// deposed. A new store replaces the old one's tokens; the coordinator of a lost
// store cannot come back, because its store is remembered as retired.
func (a *Agent) fence(name string, f *api.Fence) (*cluster, error) {
	if err := checkName("cluster", name); err != nil {
		return nil, err
	}
	if f.GetToken() == 0 || f.GetStore() == 0 {
		return nil, fault.New(fault.Invalid, "fence: token or store missing")
	}
	a.mu.Lock()
	c, ok := a.clusters[name]
	if !ok {
		c = &cluster{name: name, rec: journal.Cluster{Name: name}, guests: map[string]*guest{}}
		a.clusters[name] = c
	}
	a.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.rec
	switch {
	case slices.Contains(rec.RetiredStores, f.Store):
		return nil, fault.New(fault.Stale, "coordinator of a store that was replaced (store %x)", f.Store)
	case rec.Store == f.Store && f.Token < rec.Fence:
		return nil, fault.New(fault.Stale, "coordinator was deposed (token %d, newest %d)", f.Token, rec.Fence)
	case rec.Store == f.Store && f.Token == rec.Fence:
		return c, nil
	case rec.Store != 0 && rec.Store != f.Store:
		rec.RetiredStores = append(slices.Clone(rec.RetiredStores), rec.Store)
	}
	rec.Store, rec.Fence = f.Store, f.Token
	if err := a.journal.PutCluster(rec); err != nil {
		return nil, err
	}
	c.rec = rec
	return c, nil
}

// update changes the cluster's journal record: durable first, visible after.
func (a *Agent) update(c *cluster, change func(*journal.Cluster)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.rec
	change(&rec)
	if err := a.journal.PutCluster(rec); err != nil {
		return err
	}
	c.rec = rec
	return nil
}

// list returns the guests, by name.
func (c *cluster) list() []*guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*guest, 0, len(c.guests))
	for _, g := range c.guests {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *guest) int { return strings.Compare(a.spec.Name, b.spec.Name) })
	return out
}

func (c *cluster) record() journal.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// checkName refuses what cannot be the name of a cluster, guest, card or disk.
// Names become file names and link labels.
func checkName(what, name string) error {
	if name == "" || len(name) > 63 {
		return fault.New(fault.Invalid, "%s name %q: need 1 to 63 characters", what, name)
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
			return fault.New(fault.Invalid, "%s name %q: only a-z, 0-9 and - are allowed", what, name)
		}
	}
	return nil
}

func encodeSpec(spec *api.GuestSpec) (json.RawMessage, error) {
	b, err := protojson.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode guest %s: %w", spec.GetName(), err)
	}
	return b, nil
}

func decodeSpec(b json.RawMessage) (*api.GuestSpec, error) {
	var spec api.GuestSpec
	if err := protojson.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("decode guest: %w", err)
	}
	return &spec, nil
}

// removeAll removes a guest's directories. Absent ones are fine.
func (a *Agent) removeFiles(cluster, name string) error {
	for _, dir := range []string{a.guestDir(cluster, name), a.memoryDir(cluster, name)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove files of guest %s: %w", name, err)
		}
	}
	return nil
}
