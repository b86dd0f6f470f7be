package nodeagent

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// cluster is this node's part of one cluster.
type cluster struct {
	name string        // immutable
	op   chan struct{} // the turn of create, release and destroy; see enter

	// wired is the incarnation of the data plane that the guests are joined to. It
	// belongs to who has the turn.
	wired string

	mu      sync.Mutex
	rec     journal.Cluster   // guarded by mu; what the journal holds
	guests  map[string]*guest // guarded by mu; complete ones only
	partial map[string]*guest // guarded by mu; being made, or only to be destroyed
	round   *roundRun         // guarded by mu; nil when none runs
	// running is true once all guests were let run by this agent. From then on
	// only rounds stop and resume them. Guarded by mu.
	running bool
}

func newCluster(rec journal.Cluster) *cluster {
	return &cluster{
		name: rec.Name, op: make(chan struct{}, 1), rec: rec,
		guests: map[string]*guest{}, partial: map[string]*guest{},
	}
}

// guest is one guest. Immutable once in cluster.guests; before and after, it
// belongs to who has the cluster's turn.
type guest struct {
	cluster  string
	spec     *api.GuestSpec
	dir      string // runtime directory
	boot     bootFiles
	machine  machine        // nil: none was launched or found
	process  *qemu.State    // of a process that exists and could not be reached; else nil
	nics     []*api.NICSpec // those on the fabric
	injected uint64         // frames, on its restart
	epoch    uint64         // in which its life began

	stall *stall // guarded by cluster.mu; why it stands still for a disk; nil: it does not, as far as is known

	confidential *confidential // nil until it has its machine
	endTool      func()        // nil: it has no tool
	endWatch     func()        // ends the watch for its end; nil: none runs

	bases bases // below its disks

	// ending is how the guest has ended by itself; nil: it has not, as far as is known.
	// Guarded by cluster.mu.
	ending *journal.Ending

	// lost says how a partial guest appears to others: not at all (zero) while
	// it is made. Guarded by cluster.mu.
	lost api.GuestState
}

// bases are the files below a guest's disks, as they were when it was made.
type bases struct {
	sync.Mutex
	files []*api.BaseFile // guarded by Mutex; nil: not known yet
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

// list returns the complete guests, by name.
func (c *cluster) list() []*guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return byName(c.guests)
}

// leftovers returns the guests that are being made or only to be destroyed.
func (c *cluster) leftovers() []*guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return byName(c.partial)
}

func byName(guests map[string]*guest) []*guest {
	return slices.SortedFunc(maps.Values(guests), func(a, b *guest) int { return strings.Compare(a.spec.Name, b.spec.Name) })
}

// complete counts g among the guests.
func (c *cluster) complete(g *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.partial, g.spec.Name)
	c.guests[g.spec.Name] = g
}

// setAside takes g out of the guests: from now on it is only to be destroyed.
func (c *cluster) setAside(g *guest, as api.GuestState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.lost = as
	delete(c.guests, g.spec.Name)
	c.partial[g.spec.Name] = g
}

// forget drops a guest of which nothing is left.
func (c *cluster) forget(g *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.partial, g.spec.Name)
}

// memory returns what the cluster's guests take or will take, in bytes.
func (c *cluster) memory() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int64
	for _, guests := range []map[string]*guest{c.guests, c.partial} {
		for _, g := range guests {
			n += int64(g.spec.MemoryBytes)
		}
	}
	return n
}

func (c *cluster) isRunning() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

func (c *cluster) setRunning(running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = running
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
	if name[0] == '-' {
		return fault.New(fault.Invalid, "%s name %q: begins with -", what, name)
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

// removeFiles removes a guest's directories. Absent ones are fine.
func (a *Agent) removeFiles(cluster, name string) error {
	for _, dir := range []string{a.guestDir(cluster, name), a.memoryDir(cluster, name)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove files of guest %s: %w", name, err)
		}
	}
	return nil
}
