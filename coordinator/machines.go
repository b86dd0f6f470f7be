package coordinator

import (
	"fmt"
	"strings"

	"fermata/coordinator/spec"
	"fermata/protocol/fault"
)

// sameMachines refuses to restart a cluster from a checkpoint of unlike
// machines: what the operator has specified since and what the checkpoint holds
// are two different clusters, and only the operator can say which one is meant.
// Everything else of a specification may differ; the checkpoint's holds.
func sameMachines(now, then *spec.Spec) error {
	was := make(map[string]spec.Guest, len(then.Guests))
	for _, g := range then.Guests {
		was[g.Name] = g
	}
	var differences []string
	differ := func(guest, what string, is, held any) {
		if is != held {
			differences = append(differences, fmt.Sprintf("guest %s: %s %v, in the checkpoint %v", guest, what, is, held))
		}
	}
	for _, is := range now.Guests {
		held, ok := was[is.Name]
		if !ok {
			differences = append(differences, fmt.Sprintf("guest %s: not in the checkpoint", is.Name))
			continue
		}
		delete(was, is.Name)
		differ(is.Name, "machine", is.Machine, held.Machine)
		differ(is.Name, "cpu", is.CPU, held.CPU)
		differ(is.Name, "memory", is.MemoryBytes, held.MemoryBytes)
		differ(is.Name, "vcpus", is.VCPUs, held.VCPUs)
		differ(is.Name, "disks", len(is.Disks), len(held.Disks))
		differ(is.Name, "guest agent", is.GuestAgent, held.GuestAgent)
		differ(is.Name, "guest tool", is.GuestTool, held.GuestTool)
		differ(is.Name, "nics", len(is.NICs), len(held.NICs))
	}
	for _, g := range then.Guests {
		if _, left := was[g.Name]; left {
			differences = append(differences, fmt.Sprintf("guest %s: only in the checkpoint", g.Name))
		}
	}
	if len(differences) == 0 {
		return nil
	}
	return fault.New(fault.Mismatch, "cluster %s is specified with other machines: %s (to go back to the checkpoint's, delete the cluster first)",
		now.Name, strings.Join(differences, "; "))
}
