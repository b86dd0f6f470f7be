package coordinator_test

import (
	"testing"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// Of two agents with one certificate the second is refused and its error names the first.
func TestRegister_SecondAgentOfOneName(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	register := func(info *api.NodeInfo) error {
		_, err := c.registry.Register(t.Context(), &api.RegisterRequest{Node: info})
		return err
	}
	first := l.agents["n1"].Address()
	err := register(&api.NodeInfo{Name: "n1", Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1", Incarnation: "second"})
	wantFault(t, err, fault.Exists, first, "certs issue")
	node, err := c.GetNode(t.Context(), &api.GetNodeRequest{Name: "n1"})
	if err != nil || node.GetAddress() != first {
		t.Errorf("node %v, %v; want the first agent at %s", node, err, first)
	}

	// Nobody answers where the first was: it has moved, or was started again.
	for _, incarnation := range []string{"a", "b"} {
		if err := register(&api.NodeInfo{Name: "n2", Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1", Incarnation: incarnation}); err != nil {
			t.Errorf("incarnation %s: %v", incarnation, err)
		}
	}
}

func TestRegister_AddressThatNobodyCanDial(t *testing.T) {
	c := newLab(t).start(0)
	for _, info := range []*api.NodeInfo{
		{Name: "n1", Address: "[::]:7420", FabricAddress: "192.0.2.1:7421"},
		{Name: "n1", Address: "192.0.2.1:7420", FabricAddress: "0.0.0.0:7421"},
	} {
		_, err := c.registry.Register(t.Context(), &api.RegisterRequest{Node: info})
		wantFault(t, err, fault.Invalid, "every address of a machine")
	}
}

func TestCheckpoint_LabelThatCannotBeShown(t *testing.T) {
	c := newLab(t).start(0)
	_, err := follow(c.TakeCheckpoint(t.Context(), &api.CheckpointRequest{Cluster: "web", Label: "good\u202edab"}))
	wantFault(t, err, fault.Invalid, "U+202E")
}
