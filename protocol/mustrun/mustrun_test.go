package mustrun

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// ending records how Need ended a test, without ending the real one.
type ending struct {
	testing.TB
	skipped, failed bool
}

func (e *ending) Helper()               {}
func (e *ending) Skipf(string, ...any)  { e.skipped = true; runtime.Goexit() }
func (e *ending) Fatalf(string, ...any) { e.failed = true; runtime.Goexit() }
func (e *ending) Fatal(...any)          { e.failed = true; runtime.Goexit() }
func endOf(t *testing.T, tiers ...Tier) *ending {
	e := &ending{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Need(e, tiers...)
	}()
	<-ended
	return e
}

func TestNeed_SkipsOrFails(t *testing.T) {
	t.Setenv("PATH", t.TempDir())

	t.Setenv(Env, "")
	if e := endOf(t, QEMU); !e.skipped || e.failed {
		t.Errorf("missing and not demanded: skipped=%v failed=%v, want skipped", e.skipped, e.failed)
	}
	for _, list := range []string{"qemu", "all", "etcd, qemu", "no-such-tier"} {
		t.Setenv(Env, list)
		if e := endOf(t, QEMU); e.skipped || !e.failed {
			t.Errorf("%s=%q: skipped=%v failed=%v, want failed", Env, list, e.skipped, e.failed)
		}
	}
	t.Setenv(Env, "etcd")
	if e := endOf(t, QEMU); !e.skipped {
		t.Error("demanding another tier must leave a skip a skip")
	}
}

func TestNeed_ReturnsWhenPresent(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"qemu-system-x86_64", "vmlinuz", "initrd.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	t.Setenv(GuestDirEnv, dir)
	t.Setenv(Env, "all")
	if e := endOf(t, QEMU, GuestImage); e.skipped || e.failed {
		t.Errorf("present: skipped=%v failed=%v, want neither", e.skipped, e.failed)
	}
}

func TestProbe_NetNSLeavesProcessAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	namespace := func() string {
		main, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		thread, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return main + " " + thread
	}
	before := namespace()
	for range 50 { // the main thread is met only now and then
		if err := probe(NetNS); err != nil {
			t.Skip(err)
		}
		if after := namespace(); before != after {
			t.Fatalf("network namespaces changed from %s to %s", before, after)
		}
	}
}

func TestProbe_EveryTierIsKnown(t *testing.T) {
	for _, tier := range Tiers() {
		if err := probe(tier); err != nil && err.Error() == `unknown tier "`+string(tier)+`"` {
			t.Error(err)
		}
	}
	if err := probe("bogus"); err == nil {
		t.Error("probe of an unknown tier must fail")
	}
	if len(Tiers()) != len(slices.Compact(slices.Sorted(slices.Values(Tiers())))) {
		t.Error("a tier is listed twice")
	}
}

// TestOffered_LeavesOutOnlyKVM: everything else can be installed.
func TestOffered_LeavesOutOnlyKVM(t *testing.T) {
	got, err := parse("offered")
	if err != nil {
		t.Fatal(err)
	}
	for _, tier := range Tiers() {
		if tier != KVM && !slices.Contains(got, tier) {
			t.Errorf("tier %s is left out", tier)
		}
	}
	_, statErr := os.Stat("/dev/kvm")
	if statErr == nil && !slices.Contains(got, KVM) {
		t.Error("kvm is left out, though there is a /dev/kvm")
	}
	if !hasWord("234 btrfs-control\n232 kvm\n", "kvm") || hasWord("258 vhost-kvm-x\n", "kvm") {
		t.Error("kvm is not told from other devices")
	}
}
