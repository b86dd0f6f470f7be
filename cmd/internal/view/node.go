package view

import (
	"fmt"
	"io"
	"strings"
	"time"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
	"fermata/protocol/identity"
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
	Bridges         []string `json:"bridges"`            // that networks may be joined to
	Repository      string   `json:"repository_problem"` // why the node cannot use it; empty: it can
	Guests          []Guest  `json:"guests"`

	// CertificateExpires is the zero instant for a node without a certificate.
	CertificateExpires Instant `json:"certificate_expires"`
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
		Bridges: append([]string{}, m.GetBridges()...), Repository: m.GetRepositoryProblem(),
		Guests: ofGuests(m.GetGuests()),

		CertificateExpires: instant(m.GetCertificateNotAfterUnixNs()),
	}
}

// WriteTable writes one line a node.
func (d Nodes) WriteTable(w io.Writer) error {
	rows := render.NewRows("NAME", "STATE", "ADDRESS", "GUESTS", "FREE", "MEMORY", "CPUS", "KVM", "QEMU", "LAST SEEN")
	for _, n := range d.Nodes {
		rows.Add(n.Name, n.state(), n.Address, len(n.Guests), render.Bytes(n.MemoryFreeBytes), render.Bytes(n.MemoryBytes),
			n.CPUs, yesNo(n.KVM), n.QEMUVersion, render.Time(n.LastSeen.Time))
	}
	if err := rows.Write(w); err != nil {
		return err
	}
	for _, n := range d.Nodes {
		if text := n.certificateWarning(time.Now()); text != "" {
			if _, err := fmt.Fprintf(w, "warning: the certificate of node %s %s; renew it with: fermata certs renew\n", n.Name, text); err != nil {
				return err
			}
		}
	}
	return nil
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
	if n.Repository != "" {
		f.Add("repository", n.Repository)
	}
	if len(n.Bridges) > 0 {
		f.Add("bridges", strings.Join(n.Bridges, ", "))
	}
	if at := n.CertificateExpires.Time; !at.IsZero() {
		text := n.certificateWarning(time.Now())
		if text == "" {
			text = "expires on " + at.UTC().Format(time.DateOnly)
		}
		f.Add("certificate", text)
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
	switch {
	case !n.Alive:
		return "lost"
	case n.Repository != "":
		return "no-repository"
	}
	return "alive"
}

// certificateWarning says that the node's certificate expires soon, or has; empty: it
// does not.
func (n Node) certificateWarning(now time.Time) string {
	at := n.CertificateExpires.Time
	left := at.Sub(now)
	switch {
	case at.IsZero() || left > identity.WarnBefore:
		return ""
	case left <= 0:
		return "expired on " + at.UTC().Format(time.DateOnly)
	default:
		return fmt.Sprintf("expires on %s, in %d days", at.UTC().Format(time.DateOnly), int(left.Hours()/24))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
