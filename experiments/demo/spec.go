package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"fermata/experiments/guests"
)

// guestMemory is what a guest of the demo has.
const guestMemory = "192MiB"

// clusterSpec writes the cluster specification: all guests on one network,
// spread over the nodes.
func clusterSpec(app guests.Cluster, guestDir string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\n", clusterName)
	fmt.Fprintf(&b, "defaults:\n  accel: tcg\n  machine: pc-q35-7.2\n  cpu: qemu64\n  memory: %s\n  vcpus: 1\n", guestMemory)
	fmt.Fprintf(&b, "  kernel: %s\n  initrd: %s\n", filepath.Join(guestDir, "vmlinuz"), filepath.Join(guestDir, "initrd.img"))
	b.WriteString("placement:\n  policy: spread\nguests:\n")
	for i := 1; i <= app.Count; i++ {
		fmt.Fprintf(&b, "  - name: %s\n    cmdline: %q\n    nics:\n      - network: lan\n", guests.Name(i), app.Cmdline(i))
	}
	return []byte(b.String())
}

// swapped places each guest on the node it was not on.
func swapped(placed []placement) string {
	other := map[string]string{"n1": "n2", "n2": "n1"}
	var words []string
	for _, p := range placed {
		words = append(words, p.Name+"="+other[p.Node])
	}
	return strings.Join(words, ",")
}
