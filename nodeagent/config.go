package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"fermata/imageio/repository"
	"fermata/imageio/seal"
	"fermata/protocol/address"
	"fermata/protocol/identity"
)

// Config holds what an agent needs. The zero value of an optional field
// selects the default written beside it.
type Config struct {
	Name string // required: the node's name, as in its certificate

	StateDir   string            // required: journal, sockets and consoles; survives a restart of the agent
	MemoryDir  string            // required: where guests' memory files lie, on tmpfs or hugetlbfs
	Repository repository.Config // required: Dir, on the parallel filesystem
	// RepositoryKey gets the repository's key whenever it is to be opened. Optional:
	// Repository.Key is used.
	RepositoryKey func(ctx context.Context) (*seal.Key, error)

	Listen          string // required: host:port of the Node service
	Advertise       string // how others reach it. Default: Listen
	FabricListen    string // required: host:port for links of other agents
	FabricAdvertise string // default: FabricListen

	Coordinators []string // addresses to register with; none: the agent waits to be called

	Identity  *identity.Identity // required unless Plaintext
	Plaintext bool               // no TLS; loopback only
	// FabricPlaintext leaves TLS out of the links between agents alone, on a network
	// where everybody who reaches FabricListen is trusted: he could send guests
	// whatever he likes, and read what they send. All agents alike.
	FabricPlaintext bool

	MemoryBytes  int64 // for guests, in all. Default: 80 % of what is available at start
	AgentBytes   int64 // for all else: copies, frames and the index of stored pages; see memory.go. Default: 75 % of what remains beside MemoryBytes, or one and a half times CaptureBytes
	CaptureBytes int64 // of AgentBytes, for copies and pre-images of guests' memory. Default: two thirds

	// AllowedPaths are the directories from which specifications may name files of this
	// node: kernels, RAM disks, disk images, and sockets of QEMUs to be adopted.
	// Default: /srv and /boot.
	AllowedPaths []string

	// Bridges are the Linux bridges of this node that clusters may be joined to, by the
	// names that specifications know them by. None: clusters are closed here.
	Bridges map[string]string

	QEMU string // binary. Default: qemu-system-x86_64
	// QEMUUser is the user that QEMU runs as, who needs no permission on any file; root
	// confines nothing. Default: fermata-qemu if there is such a user, else nobody.
	QEMUUser string
	// Cgroup is a directory of the cgroup2 file system where each guest gets a cgroup, or
	// none. Default: below the agent's own cgroup if that was delegated to it, else
	// fermata at the top; the agent's own where neither can be made.
	Cgroup string
	Guard  []string // command that runs guard.Serve. Default: this binary with "guard"
	// DataPlane is the command that runs dataplane.Main. Default: this binary with
	// "data-plane".
	DataPlane []string

	// DrainBudget bounds the wait for a guest to take its frames before it is
	// stopped. It runs again all that time. Default 2s.
	DrainBudget time.Duration

	// ConsoleBytes is how much of what a guest prints is kept, and of what its QEMU does.
	// Older output is dropped. Default 64 MiB.
	ConsoleBytes int64

	// DestroyOnExit ends the node's guests when Run returns: for labs. By
	// default guests outlive their agent, which finds them again.
	DestroyOnExit bool

	Version string       // of the program, for node show
	Logger  hclog.Logger // default: discards
}

func (c *Config) applyDefaults() error {
	if c.Advertise == "" {
		c.Advertise = c.Listen
	}
	if c.FabricAdvertise == "" {
		c.FabricAdvertise = c.FabricListen
	}
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.ConsoleBytes == 0 {
		c.ConsoleBytes = defaultConsoleBytes
	}
	if c.DrainBudget == 0 {
		c.DrainBudget = 2 * time.Second
	}
	if c.AllowedPaths == nil {
		c.AllowedPaths = defaultAllowedPaths
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	var left int64
	if c.MemoryBytes == 0 || c.AgentBytes == 0 && c.CaptureBytes == 0 {
		available, err := memoryAvailable()
		if err != nil {
			return err
		}
		if c.MemoryBytes == 0 {
			c.MemoryBytes = available / 10 * 8
		}
		left = max(available-c.MemoryBytes, 0)
	}
	c.shareMemory(left)
	c.Repository.IndexBytes = c.indexBytes()
	return nil
}

// Validate reports every problem at once.
func (c *Config) Validate() error {
	var errs []error
	missing := func(name, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s: missing", name))
		}
	}
	missing("name", c.Name)
	missing("state_dir", c.StateDir)
	missing("memory_dir", c.MemoryDir)
	missing("repository", c.Repository.Dir)
	for _, a := range []struct{ name, value string }{
		{"listen", c.Listen}, {"fabric_listen", c.FabricListen},
	} {
		if _, _, err := net.SplitHostPort(a.value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is not host:port", a.name, a.value))
			continue
		}
		if c.Plaintext {
			if err := identity.PlaintextAllowed(a.value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			}
		}
	}
	for _, a := range []struct{ name, value, listens string }{
		{"advertise", c.Advertise, c.Listen}, {"fabric_advertise", c.FabricAdvertise, c.FabricListen},
	} {
		switch {
		case a.value == a.listens && address.Wildcard(a.value):
			errs = append(errs, fmt.Errorf("%s: missing, and %s stands for every address of this node: say at which one others reach it, such as %s",
				a.name, a.value, exampleAddress(c.Name, a.value)))
		case a.value != a.listens:
			if err := address.CheckDialled(a.value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			}
		}
	}
	for _, a := range c.Coordinators {
		if err := address.Check(a); err != nil {
			errs = append(errs, fmt.Errorf("coordinators: %w", err))
		}
	}
	switch {
	case c.Identity == nil && !c.Plaintext:
		errs = append(errs, errors.New("certificate: missing (or ask for plain text on loopback)"))
	case c.Identity != nil && c.Identity.Peer().Name != c.Name:
		errs = append(errs, fmt.Errorf("name: %q, but the certificate is for %s", c.Name, c.Identity.Peer()))
	}
	for _, dir := range c.AllowedPaths {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("allowed_paths: %q is not absolute", dir))
		}
	}
	if c.Cgroup != "" && c.Cgroup != noCgroup && !filepath.IsAbs(c.Cgroup) {
		errs = append(errs, fmt.Errorf("cgroup: %q is neither a directory nor %s", c.Cgroup, noCgroup))
	}
	for name, device := range c.Bridges {
		if err := checkName("bridge", name); err != nil {
			errs = append(errs, fmt.Errorf("bridges: %w", err))
		}
		if device == "" || len(device) >= unix.IFNAMSIZ || strings.ContainsAny(device, "/ ") {
			errs = append(errs, fmt.Errorf("bridges: %s: %q cannot be the name of a bridge", name, device))
		}
	}
	errs = append(errs, c.checkMemory())
	if c.ConsoleBytes < minConsoleBytes {
		errs = append(errs, fmt.Errorf("console_mib: less than %d KiB", minConsoleBytes>>10))
	}
	if c.DrainBudget < 0 {
		errs = append(errs, fmt.Errorf("drain_budget: negative (%s)", c.DrainBudget))
	}
	return errors.Join(errs...)
}

// exampleAddress is how a node's address for others may look.
func exampleAddress(node, listen string) string {
	_, port, _ := net.SplitHostPort(listen) // checked before
	return net.JoinHostPort(node, port)
}

// memoryAvailable returns MemAvailable of /proc/meminfo (proc_meminfo(5)), bytes.
func memoryAvailable() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	for line := range lines(b) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("read memory size: no MemAvailable in /proc/meminfo")
}

// kernelRelease returns what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
