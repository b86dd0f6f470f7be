// Package mustrun lets a test say what it needs of the machine.
//
// A test that lacks what it needs is skipped with the reason. The environment
// variable FERMATA_MUST_RUN, a list such as "qemu,etcd" or the word "all", names
// the tiers whose absence is a failure instead, so that a machine that should
// run everything cannot pass by skipping. The word "offered" stands for all tiers
// that its kernel can offer: what no package can bring is left out.
//
// Only tests import it.
package mustrun

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Env names the environment variable that turns skips into failures.
const Env = "FERMATA_MUST_RUN"

// Tier is something a test may need of the machine. Its text is the word used
// in FERMATA_MUST_RUN.
type Tier string

const (
	QEMU       Tier = "qemu"        // qemu-system-x86_64 in PATH
	KVM        Tier = "kvm"         // /dev/kvm opens and answers KVM_GET_API_VERSION
	HugePages  Tier = "hugepages"   // root, and the kernel has huge pages of 2 MiB to reserve
	UFFD       Tier = "uffd"        // userfaultfd(2), faults of the kernel included
	NetNS      Tier = "netns"       // root, and a network namespace can be made
	FUSE       Tier = "fuse"        // root, and /dev/fuse opens
	Gluster    Tier = "gluster"     // root, and glusterd and mount.glusterfs in PATH
	Etcd       Tier = "etcd"        // etcd in PATH
	Libvirt    Tier = "libvirt"     // libvirtd and virsh in PATH
	OVMF       Tier = "ovmf"        // UEFI firmware for guests, see OVMFCode
	GuestImage Tier = "guest-image" // a kernel and an initrd to boot, see GuestDir
)

// Tiers lists every tier.
func Tiers() []Tier {
	return []Tier{QEMU, KVM, HugePages, UFFD, NetNS, FUSE, Gluster, Etcd, Libvirt, OVMF, GuestImage}
}

// Need returns when the machine has every tier. Otherwise it ends the test:
// skipped with the reason, or failed if FERMATA_MUST_RUN names a missing tier.
//
// Tests that boot Linux guests (tier GuestImage) take minutes and are left out
// of go test -short, which is for the time between two keystrokes.
func Need(t testing.TB, tiers ...Tier) {
	t.Helper()
	if testing.Short() && slices.Contains(tiers, GuestImage) {
		t.Skip("boots Linux guests: not with -short")
	}
	must, err := parse(os.Getenv(Env))
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	failed := false
	for _, tier := range tiers {
		if err := probe(tier); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", tier, err))
			failed = failed || slices.Contains(must, tier)
		}
	}
	switch {
	case len(missing) == 0:
	case failed:
		t.Fatalf("%s=%s, but the machine lacks %s", Env, os.Getenv(Env), strings.Join(missing, "; "))
	default:
		t.Skipf("the machine lacks %s", strings.Join(missing, "; "))
	}
}

// parse reads the list of tiers that must run. A word that is no tier is an
// error: a misspelt tier would silently demand nothing.
func parse(list string) ([]Tier, error) {
	var must []Tier
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		switch {
		case word == "":
		case word == "all":
			return Tiers(), nil
		case word == "offered":
			must = append(must, offered()...)
		case slices.Contains(Tiers(), Tier(word)):
			must = append(must, Tier(word))
		default:
			return nil, fmt.Errorf("%s: %q is no tier (have %v, all and offered)", Env, word, Tiers())
		}
	}
	return must, nil
}
