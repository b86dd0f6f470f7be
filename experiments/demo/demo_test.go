package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fermata/experiments/labrun"
	"fermata/protocol/mustrun"
)

// TestDemo runs the whole demo, and its control: the same run without channel
// state, which must lose canaries.
func TestDemo(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	fermata := filepath.Join(t.TempDir(), "fermata")
	if err := labrun.Build(t.Context(), fermata); err != nil {
		t.Fatal(err)
	}
	for _, control := range []bool{false, true} {
		name := map[bool]string{false: "proof", true: "control"}[control]
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "fermata-demo-") // sockets want short paths
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			r, err := perform(t.Context(), options{
				Fermata: fermata, GuestDir: image, Dir: filepath.Join(dir, "lab"), Guests: 4, Quick: true, Control: control,
			}, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			var table strings.Builder
			r.writeTable(&table)
			t.Log(table.String())
			if err := r.verdict(control); err != nil {
				t.Error(err)
			}
		})
	}
}
