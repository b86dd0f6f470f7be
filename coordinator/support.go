package coordinator

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"fermata/coordinator/spec"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/text"
)

// unsupported says what of a guest the QEMU of a node cannot be, empty if it can be all
// of it or the node has not told what it can be.
func unsupported(g spec.Guest, node *api.NodeInfo) string {
	can := node.GetQemuSupport()
	if can == nil || g.Adopt != "" {
		return ""
	}
	var lacks []string
	lack := func(what, wanted string, known []string, closest func(string, []string) string) {
		if !slices.Contains(known, wanted) {
			lacks = append(lacks, fmt.Sprintf("%s %s (the closest is %s)", what, wanted, closest(wanted, known)))
		}
	}
	lack("machine type", g.Machine, can.GetMachineTypes(), closestMachine)
	model, _, _ := strings.Cut(g.CPU, ",")
	lack("CPU model", model, can.GetCpuModels(), text.Closest)
	if len(lacks) == 0 {
		return ""
	}
	return fmt.Sprintf("QEMU %s of node %s does not know %s", node.GetQemuVersion(), node.GetName(), strings.Join(lacks, " and "))
}

// closestMachine is the known machine of the same family whose version is the closest.
func closestMachine(wanted string, known []string) string {
	best, least := "", 0
	family, version := machineVersion(wanted)
	for _, k := range slices.Sorted(slices.Values(known)) {
		f, v := machineVersion(k)
		if away := max(v-version, version-v); f == family && (best == "" || away <= least) {
			best, least = k, away
		}
	}
	if best == "" {
		return text.Closest(wanted, known)
	}
	return best
}

// machineVersion splits pc-q35-7.2 into pc-q35 and a number that grows with the version.
func machineVersion(name string) (family string, version int) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 {
		return name, 0
	}
	var major, minor int
	_, _ = fmt.Sscanf(name[i+1:], "%d.%d", &major, &minor) // what is no version is 0
	return name[:i], major*100 + minor
}

// unfit returns, for each guest, the nodes whose QEMU cannot be its machine.
//
// On error (mismatch): a guest can be nowhere, or not where it has to be.
func unfit(s *spec.Spec, nodes []*api.NodeInfo, where map[string]string) (map[string][]string, error) {
	all := map[string][]string{}
	var problems []string
	for _, g := range s.Guests {
		place := g.Node
		if on, given := where[g.Name]; given {
			place = on
		}
		reason, candidates := "", 0
		for _, n := range nodes {
			if place != "" && place != n.GetName() {
				continue
			}
			candidates++
			if r := unsupported(g, n); r != "" {
				all[g.Name] = append(all[g.Name], n.GetName())
				reason = r
			}
		}
		if candidates > 0 && len(all[g.Name]) == candidates {
			problems = append(problems, fmt.Sprintf("guest %s: %s", g.Name, reason))
		}
	}
	if len(problems) > 0 {
		return nil, fault.New(fault.Mismatch, "%s", strings.Join(problems, "\n"))
	}
	return all, nil
}

// checkSupport refuses a specification that no node which is alive now could run. Nodes
// that are not there are asked when the cluster starts.
func (t *term) checkSupport(ctx context.Context, s *spec.Spec) error {
	infos, err := t.c.store.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	infos = slices.DeleteFunc(infos, func(n *api.NodeInfo) bool { return !n.GetAlive() })
	_, err = unfit(s, infos, nil)
	return err
}
