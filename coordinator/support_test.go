package coordinator_test

import (
	"strings"
	"testing"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// A machine that no QEMU of the nodes can be is refused before anything is stored, with
// the closest one that can.
func TestCreate_MachineThatNoNodeKnows(t *testing.T) {
	c := newLab(t).start(0)
	for name, machines := range map[string][]string{"n1": {"pc-q35-2.9", "pc-q35-7.1", "pc-q35-7.2", "pc-i440fx-9.9"}, "n2": {"pc-q35-9.2"}} {
		_, err := c.registry.Register(t.Context(), &api.RegisterRequest{Node: &api.NodeInfo{
			Name: name, Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1", QemuVersion: machines[0][7:],
			QemuSupport: &api.QEMUSupport{MachineTypes: machines, CpuModels: []string{"qemu64", "EPYC", "Cascadelake-Server"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(name, machine, cpu, node string) error {
		yaml := strings.Replace(string(specOf(name, "a")), "defaults:\n", "defaults:\n  machine: "+machine+"\n  cpu: "+cpu+"\n", 1)
		if node != "" {
			yaml = strings.Replace(yaml, "- name: a", "- name: a\n    node: "+node, 1)
		}
		_, err := c.CreateCluster(t.Context(), &api.CreateClusterRequest{SpecYaml: []byte(yaml)})
		return err
	}
	if err := create("here", "pc-q35-7.2", "qemu64", ""); err != nil {
		t.Errorf("known to one node: %v", err)
	}
	err := create("nowhere", "pc-q35-7.3", "Cascadelake-Sever", "")
	wantFault(t, err, fault.Mismatch, "guest a", "machine type pc-q35-7.3 (the closest is pc-q35-", "CPU model Cascadelake-Sever (the closest is Cascadelake-Server)")
	err = create("elsewhere", "pc-q35-9.9", "qemu64", "n1")
	wantFault(t, err, fault.Mismatch, "node n1", "machine type pc-q35-9.9 (the closest is pc-q35-7.2)")
	if err := create("pinned", "pc-q35-9.2", "qemu64", "n2"); err != nil {
		t.Errorf("known to its node: %v", err)
	}
}
