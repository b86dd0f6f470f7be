package coordinator

import (
	"strings"
	"testing"

	"fermata/coordinator/spec"
	"fermata/protocol/fault"
)

func TestSameMachines(t *testing.T) {
	then := func() *spec.Spec {
		return &spec.Spec{Name: "web", Guests: []spec.Guest{
			{Name: "a", Machine: "pc-q35-7.2", CPU: "qemu64", MemoryBytes: 1 << 28, VCPUs: 1},
			{Name: "b", Machine: "pc-q35-7.2", CPU: "qemu64", MemoryBytes: 1 << 28, VCPUs: 1},
		}}
	}
	for _, c := range []struct {
		name   string
		change func(*spec.Spec)
		wants  string // part of the refusal; empty: none
	}{
		{"nothing", func(*spec.Spec) {}, ""},
		{"command line", func(s *spec.Spec) { s.Guests[0].Cmdline = "debug" }, ""},
		{"order", func(s *spec.Spec) { s.Guests[0], s.Guests[1] = s.Guests[1], s.Guests[0] }, ""},
		{"machine", func(s *spec.Spec) { s.Guests[0].Machine = "pc-q35-7.1" }, "guest a: machine pc-q35-7.1, in the checkpoint pc-q35-7.2"},
		{"cpu", func(s *spec.Spec) { s.Guests[1].CPU = "Nehalem" }, "guest b: cpu Nehalem, in the checkpoint qemu64"},
		{"memory", func(s *spec.Spec) { s.Guests[1].MemoryBytes = 1 << 30 }, "guest b: memory"},
		{"vcpus", func(s *spec.Spec) { s.Guests[1].VCPUs = 2 }, "guest b: vcpus 2"},
		{"further guest", func(s *spec.Spec) { s.Guests = append(s.Guests, spec.Guest{Name: "c"}) }, "guest c: not in the checkpoint"},
		{"missing guest", func(s *spec.Spec) { s.Guests = s.Guests[:1] }, "guest b: only in the checkpoint"},
	} {
		now := then()
		c.change(now)
		err := sameMachines(now, then())
		if c.wants == "" && err != nil || c.wants != "" && (fault.ClassOf(err) != fault.Mismatch || !strings.Contains(err.Error(), c.wants)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.wants)
		}
	}
}
