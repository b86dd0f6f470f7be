package main

import (
	"strings"
	"testing"

	"fermata/coordinator/spec"
)

func TestNewGuest(t *testing.T) {
	for _, c := range []struct {
		idle bool
		want []string
	}{
		{false, []string{" fermata.role=dirty", " fermata.tick=5", " fermata.dirty=64,20,1,736,0,50"}},
		{true, []string{" fermata.role=dirty", " fermata.tick=1000", " fermata.dirty=1,0.001,1,736,0,1000"}},
	} {
		g, err := newGuest(gib, "kernel", "initrd", c.idle)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(g.cmdline, want) {
				t.Errorf("command line %q has no %q", g.cmdline, want)
			}
		}
	}
}

func TestGuest_FitsIntoItsMemory(t *testing.T) {
	for _, memory := range []size{minSize, 512 * mib, 8 * gib, maxSize} {
		g, err := newGuest(memory, "kernel", "initrd", false)
		if err != nil {
			t.Errorf("%s: %v", memory, err)
		}
		if g.ballast() < mib || g.ballast()+g.load()+systemSize > memory {
			t.Errorf("%s: ballast %s, load %s", memory, g.ballast(), g.load())
		}
	}
}

func TestSpecification_IsOne(t *testing.T) {
	g, err := newGuest(256*mib, "/k/vmlinuz", "/k/initrd.img", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Decode("cluster.yaml", g.specification()); err != nil {
		t.Errorf("%v\n%s", err, g.specification())
	}
}
