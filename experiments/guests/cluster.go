// Package guests knows the guests of the demo and the tests: what to boot them
// with, what their consoles say, and what a whole run proved.
//
// Each guest is one boot of the same image (experiments/guests/build makes it,
// README.md describes it). Guests check themselves: an MPI program whose result
// does not depend on the number of ranks, and a canary that counts every
// datagram between any two guests. The host reads the verdict from the consoles;
// it puts nothing into a running guest.
//
// The main types are Cluster (command lines before a run) and Summary (verdict
// after it).
package guests

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Console is the kernel's part of the command line. quiet keeps the kernel out
// of our lines; with panic=-1 and reboot=t a dead guest resets at once, which
// ends QEMU when it runs with -no-reboot. The timer check of early boot may fail
// for no reason when an emulated processor gets too little of the host's.
const Console = "console=ttyS0 quiet panic=-1 reboot=t no_timer_check"

// ImageFiles are the guests' kernel and initial RAM disk, in the directory where make
// guests puts them.
func ImageFiles(dir string) (kernel, initrd string) {
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
}

// AppImageFiles are the kernel and the initial RAM disk of guests that also have
// HPC Challenge and Redis.
func AppImageFiles(dir string) (kernel, initrd string) {
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd-apps.img")
}

// MinMemoryMiB is the least RAM with which a guest of role mpi+canary works.
const MinMemoryMiB = 128

// maxGuests is MAX_GUESTS of programs/src/canary.h.
const maxGuests = 64

// Work is what a guest does: Idle, or some of RunMPI, RunCanary and RunDirty, or-ed.
type Work uint8

const (
	// Idle guests only tick.
	Idle Work = 0
	// RunMPI makes guest 1 start the MPI program on all guests.
	RunMPI Work = 1
	// RunCanary makes every guest send numbered datagrams to every other.
	RunCanary Work = 2
	// RunDirty makes every guest rewrite memory that checks itself.
	RunDirty Work = 4
	// RunSecret makes every guest hold what no checkpoint may have.
	RunSecret Work = 8
	// RunHPCC makes guest 1 start HPC Challenge on all guests. It needs the image of
	// AppImageFiles.
	RunHPCC Work = 16
	// RunRedis makes two guests serve a replicated Redis, and guest 2 check what is in
	// it. It needs the image of AppImageFiles.
	RunRedis Work = 32
)

// workWords are the words of the command line, by the bits of Work.
var workWords = []string{"mpi", "canary", "dirty", "secret", "hpcc", "redis"}

// String is the word on the command line.
func (w Work) String() string {
	var words []string
	for bit, word := range workWords {
		if w&(1<<bit) != 0 {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return "idle"
	}
	return strings.Join(words, "+")
}

// MPI are the parameters of the MPI program.
type MPI struct {
	Side       int // points on a side of the square grid
	Iterations int
	Every      int // iterations between two MPI-ITER lines
}

// DemoMPI keeps four guests on two cores under TCG busy for some 80 seconds
// (README.md): long enough for two checkpoints and a restart.
func DemoMPI() MPI { return MPI{Side: 1024, Iterations: 1000, Every: 50} }

// QuickMPI ends within seconds.
func QuickMPI() MPI { return MPI{Side: 256, Iterations: 200, Every: 50} }

// Canary are the parameters of the canary.
type Canary struct {
	Rate      int           // datagrams a second from each guest to each other guest
	SizeBytes int           // of one datagram, 32 to 1472
	SecondNIC bool          // over eth1 in place of eth0
	Length    time.Duration // whole seconds; 0 = until the MPI program has ended
	// Wires is what datagrams are sent in: some of "udp", "eth" (bare Ethernet frames)
	// and "tcp" (blocks of a stream), with a + between them. Each gets Rate; a stream
	// less, if it takes less. Default "udp".
	Wires string
}

// AllWires is every wire of the canary.
const AllWires = "udp+eth+tcp"

// DefaultCanary is a rate at which four guests on two cores under TCG lose
// nothing by themselves, with room to spare.
func DefaultCanary() Canary { return Canary{Rate: 100, SizeBytes: 200} }

// Writer are the parameters of the program that rewrites memory. A guest that has
// a disk writes numbered records to it, too, which destroys what is there.
type Writer struct {
	MiB        int           // memory that is rewritten, over and over
	Rate       float64       // MiB a second, over all threads; 0: as fast as it goes
	Threads    int           // each has a part of the memory. Default 1
	BallastMiB int           // memory that is filled likewise, and only looked at from then on
	Length     time.Duration // whole seconds; 0: for ever
	Every      time.Duration // between two DIRTY lines, whole milliseconds. Default 1s
}

// DefaultWriter rewrites what fits into every guest.
func DefaultWriter() Writer { return Writer{MiB: 16} }

// maxWriterThreads is MAX_THREADS of programs/src/dirty.c.
const maxWriterThreads = 64

// validate reports every problem at once.
func (w Writer) validate() error {
	var errs []error
	if w.MiB < 1 || w.BallastMiB < 0 || w.Rate < 0 || w.Threads < 1 || w.Threads > maxWriterThreads {
		errs = append(errs, fmt.Errorf("writer: %d and %d MiB at %g MiB/s by %d threads", w.MiB, w.BallastMiB, w.Rate, w.Threads))
	}
	if w.Length < 0 || w.Length%time.Second != 0 {
		errs = append(errs, fmt.Errorf("writer: length %s is not whole seconds", w.Length))
	}
	if w.Every < time.Millisecond || w.Every%time.Millisecond != 0 {
		errs = append(errs, fmt.Errorf("writer: %s between two lines is not whole milliseconds", w.Every))
	}
	return errors.Join(errs...)
}

// Secret are the parameters of the program that holds a secret.
type Secret struct {
	Pages int  // of 4 KiB. Default 64
	Told  bool // to the host, by fermata-guest
}

// Challenge are the parameters of HPC Challenge.
type Challenge struct{ N int } // order of the matrices; time grows with its cube. Default 1000

// Redis are the parameters of the writer to the replicated Redis.
type Redis struct {
	Rate int // steps a second. Default 20
	Keys int // of 200 bytes. Default 2000
}

// SecretWord is number i, from 0, of the words of 64 bits that are the secret
// (programs/src/secret.c).
func SecretWord(i uint64) uint64 { return (i + 1000003) * 0x9e3779b97f4a7c15 }

// Cluster says what all guests of one cluster are told. Zero MPI, Canary, Writer,
// Net and Tick select DemoMPI, DefaultCanary, DefaultWriter, 10.77.0.0/24 and one
// second.
type Cluster struct {
	Count  int // guests, 1 to 64
	Work   Work
	MPI    MPI
	Canary Canary
	Writer Writer
	Secret Secret
	HPCC   Challenge
	Redis  Redis
	Net    netip.Prefix  // of eth0, a /24
	Tick   time.Duration // between two TICK lines, at least 1 ms
	Kernel string        // more words for the kernel's command line

	// PowerOff makes a guest end when its work has; otherwise it stays, ticks,
	// and repeats its results every ten seconds.
	PowerOff bool
}

func (c Cluster) applyDefaults() Cluster {
	if c.MPI == (MPI{}) {
		c.MPI = DemoMPI()
	}
	if c.Canary == (Canary{}) {
		c.Canary = DefaultCanary()
	}
	if c.Writer == (Writer{}) {
		c.Writer = DefaultWriter()
	}
	if c.Secret.Pages == 0 {
		c.Secret.Pages = 64
	}
	if c.HPCC.N == 0 {
		c.HPCC.N = 1000
	}
	if c.Redis == (Redis{}) {
		c.Redis = Redis{Rate: 20, Keys: 2000}
	}
	if c.Writer.Threads == 0 {
		c.Writer.Threads = 1
	}
	if c.Writer.Every == 0 {
		c.Writer.Every = time.Second
	}
	if c.Canary.Wires == "" {
		c.Canary.Wires = "udp"
	}
	if !c.Net.IsValid() {
		c.Net = netip.MustParsePrefix("10.77.0.0/24")
	}
	if c.Tick == 0 {
		c.Tick = time.Second
	}
	return c
}

// Validate reports every problem at once.
func (c Cluster) Validate() error {
	c = c.applyDefaults()
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Count < 1 || c.Count > maxGuests {
		complain("count: %d, want 1 to %d", c.Count, maxGuests)
	}
	if c.Work&RunCanary != 0 && c.Count < 2 {
		complain("count: a canary needs a second guest")
	}
	if c.MPI.Iterations < 1 || c.MPI.Every < 1 || c.MPI.Side < c.Count {
		complain("mpi: %+v for %d guests", c.MPI, c.Count)
	}
	if c.Canary.Rate < 1 || c.Canary.SizeBytes < 32 || c.Canary.SizeBytes > 1472 {
		complain("canary: rate %d, size %d (want 32 to 1472)", c.Canary.Rate, c.Canary.SizeBytes)
	}
	for wire := range strings.SplitSeq(c.Canary.Wires, "+") {
		if !slices.Contains(strings.Split(AllWires, "+"), wire) {
			complain("canary: wire %q, want some of %s", wire, AllWires)
		}
	}
	if c.Canary.Length < 0 || c.Canary.Length%time.Second != 0 {
		complain("canary: length %s is not whole seconds", c.Canary.Length)
	}
	if err := c.Writer.validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Secret.Pages < 1 {
		complain("secret: %d pages", c.Secret.Pages)
	}
	if c.HPCC.N < 1 || c.Redis.Rate < 1 || c.Redis.Keys < 1 {
		complain("applications: %+v, %+v", c.HPCC, c.Redis)
	}
	if c.Work&RunRedis != 0 && c.Count != 2 {
		complain("count: Redis takes 2 guests")
	}
	if !c.Net.Addr().Is4() || c.Net.Bits() != 24 || c.Net.Masked() != c.Net {
		complain("net: %s is not an IPv4 /24", c.Net)
	}
	if c.Tick < time.Millisecond {
		complain("tick: %s", c.Tick)
	}
	return errors.Join(errs...)
}

// Cmdline is the kernel command line of guest index, from 1.
//
// Preconditions: c is valid and 1 <= index <= c.Count.
func (c Cluster) Cmdline(index int) string {
	c = c.applyDefaults()
	words := append(strings.Fields(c.Kernel),
		Console,
		fmt.Sprintf("fermata.index=%d", index),
		fmt.Sprintf("fermata.count=%d", c.Count),
		fmt.Sprintf("fermata.net=%s", c.Net),
		fmt.Sprintf("fermata.role=%s", c.Work),
		fmt.Sprintf("fermata.tick=%d", c.Tick.Milliseconds()),
	)
	if c.Work&RunMPI != 0 {
		words = append(words, fmt.Sprintf("fermata.mpi=%d,%d,%d", c.MPI.Side, c.MPI.Iterations, c.MPI.Every))
	}
	if c.Work&RunCanary != 0 {
		device := "eth0"
		if c.Canary.SecondNIC {
			device = "eth1"
		}
		words = append(words, fmt.Sprintf("fermata.canary=%d,%d,%s,%d,%s",
			c.Canary.Rate, c.Canary.SizeBytes, device, int(c.Canary.Length.Seconds()), c.Canary.Wires))
	}
	if c.Work&RunDirty != 0 {
		words = append(words, fmt.Sprintf("fermata.dirty=%d,%g,%d,%d,%d,%d",
			c.Writer.MiB, c.Writer.Rate, c.Writer.Threads, c.Writer.BallastMiB, int(c.Writer.Length.Seconds()), c.Writer.Every.Milliseconds()))
	}
	if c.Work&RunSecret != 0 {
		told := 0
		if c.Secret.Told {
			told = 1
		}
		words = append(words, fmt.Sprintf("fermata.secret=%d,%d", c.Secret.Pages, told))
	}
	if c.Work&RunHPCC != 0 {
		words = append(words, fmt.Sprintf("fermata.hpcc=%d", c.HPCC.N))
	}
	if c.Work&RunRedis != 0 {
		words = append(words, fmt.Sprintf("fermata.redis=%d,%d", c.Redis.Rate, c.Redis.Keys))
	}
	if c.PowerOff {
		words = append(words, "fermata.end=poweroff")
	}
	return strings.Join(words, " ")
}

// Address is guest index's address on eth0.
func (c Cluster) Address(index int) netip.Addr {
	a := c.applyDefaults().Net.Addr().As4()
	a[3] = byte(10 + index)
	return netip.AddrFrom4(a)
}

// Name is what guest index calls itself in its lines.
func Name(index int) string { return fmt.Sprintf("g%d", index) }

// MAC is a hardware address that no other guest of the cluster has, for NIC nic
// (from 0) of guest index. Guests do not depend on it.
func MAC(index, nic int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0x00, 0x4d, byte(nic), byte(index)}
}
