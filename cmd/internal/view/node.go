package view

import (
	"io"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
)

// Nodes is the document of "node list".
type Nodes struct {
	Nodes []Node `json:"nodes"`
}

// Node is the document of "node show".
type Node struct {
	Name            string   `json:"name"`
	Alive           bool     `json:"alive"`
	LastSeen        Instant  `json:"last_seen"`
	Address         string   `json:"address"`
	FabricAddress   string   `json:"fabric_address"`
	MemoryBytes     uint64   `json:"memory_bytes"`
	MemoryFreeBytes uint64   `json:"memory_free_bytes"`
	CPUs            uint32   `json:"cpus"`
	QEMUVersion     string   `json:"qemu_version"`
	Kernel          string   `json:"kernel"`
	KVM             bool     `json:"kvm"`
	Version         string   `json:"version"`
	Incarnation     string   `json:"incarnation"`
	Bridges         []string `json:"bridges"` // that networks may be joined to
	Guests          []Guest  `json:"guests"`
}

// OfNodes makes the document, sorted by name.
func OfNodes(m *api.ListNodesReply) Nodes {
	return Nodes{collect(m.GetNodes(), OfNode, func(n Node) string { return n.Name })}
}

// OfNode makes the document.
func OfNode(m *api.NodeInfo) Node {
	return Node{
		Name: m.GetName(), Alive: m.GetAlive(), LastSeen: instant(m.GetLastSeenUnixNs()),
		Address: m.GetAddress(), FabricAddress: m.GetFabricAddress(),
		MemoryBytes: m.GetMemoryBytes(), MemoryFreeBytes: m.GetMemoryFreeBytes(), CPUs: m.GetCpus(),
		QEMUVersion: m.GetQemuVersion(), Kernel: m.GetKernel(), KVM: m.GetKvm(),
		Version: m.GetVersion(), Incarnation: m.GetIncarnation(),
		Bridges: append([]string{}, m.GetBridges()...),
		Guests:  ofGuests(m.GetGuests()),
	}
}

// WriteTable writes one line a node.
func (d Nodes) WriteTable(w io.Writer) error {
	rows := render.NewRows("NAME", "STATE", "ADDRESS", "GUESTS", "FREE", "MEMORY", "CPUS", "KVM", "QEMU", "LAST SEEN")
	for _, n := range d.Nodes {
		rows.Add(n.Name, n.state(), n.Address, len(n.Guests), render.Bytes(n.MemoryFreeBytes), render.Bytes(n.MemoryBytes),
			n.CPUs, yesNo(n.KVM), n.QEMUVersion, render.Time(n.LastSeen.Time))
	}
	return rows.Write(w)
}

// WriteTable writes the node and its guests.
func (n Node) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("name", n.Name)
	f.Add("state", n.state())
	f.Add("last seen", render.Time(n.LastSeen.Time))
	f.Add("address", n.Address)
	f.Add("fabric", n.FabricAddress)
	f.Add("memory", render.Bytes(n.MemoryFreeBytes)+" free of "+render.Bytes(n.MemoryBytes))
	f.Add("cpus", n.CPUs)
	f.Add("kvm", yesNo(n.KVM))
	f.Add("qemu", n.QEMUVersion)
	f.Add("kernel", n.Kernel)
	if len(n.Bridges) > 0 {
		f.Add("bridges", strings.Join(n.Bridges, ", "))
	}
	f.Add("version", n.Version)
	f.Add("incarnation", n.Incarnation)
	if err := f.Write(w); err != nil {
		return err
	}
	if len(n.Guests) == 0 {
		return nil
	}
	rows := render.NewRows("CLUSTER", "GUEST", "STATE", "MEMORY", "VCPUS", "PID")
	for _, g := range n.Guests {
		rows.Add(g.Cluster, g.Name, g.State, render.Bytes(g.MemoryBytes), g.VCPUs, g.pid())
	}
	return section(w, rows)
}

func (n Node) state() string {
	if n.Alive {
		return "alive"
	}
	return "lost"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
