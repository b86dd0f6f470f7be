package view

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
)

// Clusters is the document of "cluster list".
type Clusters struct {
	Clusters []Cluster `json:"clusters"`
}

// Cluster is the document of "cluster show".
type Cluster struct {
	Name    string   `json:"name"`
	State   string   `json:"state"` // stopped, starting, running, degraded, ended, stopping or broken
	Reason  string   `json:"reason"`
	Epoch   uint64   `json:"epoch"`
	Created Instant  `json:"created"`
	Guests  []Guest  `json:"guests"`
	Uplinks []Uplink `json:"uplinks"`
	Spec    string   `json:"spec_yaml"`

	Leftovers []Guest `json:"leftovers"` // of an earlier life of the cluster, on whatever node
}

// Uplink joins a network to a bridge of a node.
type Uplink struct {
	Network        string `json:"network"`
	Node           string `json:"node"`
	Bridge         string `json:"bridge"`
	Outside        string `json:"outside"` // drop, allow or hold-until-durable
	FramesReceived uint64 `json:"frames_received"`
	FramesSent     uint64 `json:"frames_sent"`
	FramesWaiting  uint64 `json:"frames_waiting"` // for a checkpoint
	FramesDropped  uint64 `json:"frames_dropped"`
	FramesSpoofed  uint64 `json:"frames_spoofed"` // from outside with the address of a guest's card; nothing was diverted
}

// Guest is one guest of a cluster or of a node.
type Guest struct {
	Name        string `json:"name"`
	Cluster     string `json:"cluster"`
	Node        string `json:"node"`
	State       string `json:"state"` // absent, running, paused, dead or unknown
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       uint32 `json:"vcpus"`
	PID         int32  `json:"pid"`
	Adopted     bool   `json:"adopted"` // somebody else's QEMU
	NICs        []NIC  `json:"nics"`

	Epoch  uint64  `json:"epoch"`  // in which its present life began
	Reason string  `json:"reason"` // why it has ended or stands still
	Ended  Instant `json:"ended"`  // null: it has not, or nobody knows when
}

// NIC is one network interface of a guest with the fabric's counters.
type NIC struct {
	Name           string `json:"name"`
	Network        string `json:"network"`
	MAC            string `json:"mac"`
	FramesReceived uint64 `json:"frames_received"`
	FramesSent     uint64 `json:"frames_sent"`
	FramesDropped  uint64 `json:"frames_dropped"`
	FramesHeld     uint64 `json:"frames_held"`
	FramesRecorded uint64 `json:"frames_recorded"` // became channel state of a checkpoint
	FramesInjected uint64 `json:"frames_injected"` // put in at the restart
	FramesSpoofed  uint64 `json:"frames_spoofed"`  // sent with the address of another card; nothing was diverted

	Drops  map[string]uint64 `json:"drops"`  // frames_dropped by reason
	Bridge string            `json:"bridge"` // of the node, where the card is past the fabric
}

// OfClusters makes the document, sorted by name.
func OfClusters(m *api.ListClustersReply) Clusters {
	return Clusters{collect(m.GetClusters(), OfCluster, func(c Cluster) string { return c.Name })}
}

// OfCluster makes the document.
func OfCluster(m *api.Cluster) Cluster {
	return Cluster{
		Name:    m.GetName(),
		State:   word("CLUSTER_STATE_", m.GetState().String()),
		Reason:  m.GetReason(),
		Epoch:   m.GetEpoch(),
		Created: instant(m.GetCreatedUnixNs()),
		Guests:  ofGuests(m.GetGuests()),
		Uplinks: collect(m.GetUplinks(), ofUplink, func(u Uplink) string { return u.Network }),
		Spec:    string(m.GetSpecYaml()),

		Leftovers: ofGuests(m.GetLeftovers()),
	}
}

func ofUplink(m *api.UplinkStatus) Uplink {
	u := m.GetUplink()
	return Uplink{
		Network: u.GetNetwork(), Node: m.GetNode(), Bridge: u.GetBridge(),
		Outside:        strings.ReplaceAll(word("OUTSIDE_", u.GetOutside().String()), "_", "-"),
		FramesReceived: m.GetFramesReceived(), FramesSent: m.GetFramesSent(),
		FramesWaiting: m.GetFramesWaiting(), FramesDropped: m.GetFramesDropped(), FramesSpoofed: m.GetFramesSpoofed(),
	}
}

func ofGuests(ms []*api.GuestStatus) []Guest {
	// By cluster first, for those of a node; a name holds no zero byte.
	return collect(ms, ofGuest, func(g Guest) string { return g.Cluster + "\x00" + g.Name })
}

func ofGuest(m *api.GuestStatus) Guest {
	return Guest{
		Name:        m.GetName(),
		Cluster:     m.GetCluster(),
		Node:        m.GetNode(),
		State:       word("GUEST_STATE_", m.GetState().String()),
		MemoryBytes: m.GetMemoryBytes(),
		VCPUs:       m.GetVcpus(),
		PID:         m.GetPid(),
		Adopted:     m.GetAdopted(),
		NICs:        collect(m.GetNics(), ofNIC, func(n NIC) string { return n.Name }),

		Epoch: m.GetEpoch(), Reason: m.GetReason(), Ended: instant(m.GetEndedUnixNs()),
	}
}

func ofNIC(m *api.NICStatus) NIC {
	return NIC{
		Name: m.GetName(), Network: m.GetNetwork(), MAC: m.GetMac(),
		FramesReceived: m.GetFramesReceived(), FramesSent: m.GetFramesSent(),
		FramesDropped: m.GetFramesDropped(), FramesHeld: m.GetFramesHeld(), FramesSpoofed: m.GetFramesSpoofed(),
		FramesRecorded: m.GetFramesRecorded(), FramesInjected: m.GetFramesInjected(), Drops: maps.Clone(m.GetDrops()),
		Bridge: m.GetBridge(),
	}
}

// WriteTable writes one line a cluster.
func (d Clusters) WriteTable(w io.Writer) error {
	rows := render.NewRows("NAME", "STATE", "EPOCH", "GUESTS", "NODES", "MEMORY", "CREATED", "REASON")
	for _, c := range d.Clusters {
		var memory uint64
		nodes := map[string]bool{}
		for _, g := range c.Guests {
			memory += g.MemoryBytes
			if g.Node != "" {
				nodes[g.Node] = true
			}
		}
		rows.Add(c.Name, c.State, c.Epoch, runningOf(c.Guests), len(nodes), render.Bytes(memory), render.Time(c.Created.Time), c.Reason)
	}
	return rows.Write(w)
}

// runningOf is how many of the guests run: 3/4.
func runningOf(guests []Guest) string {
	running := 0
	for _, g := range guests {
		if g.State == "running" {
			running++
		}
	}
	return fmt.Sprintf("%d/%d", running, len(guests))
}

// WriteTable writes the cluster, its guests and their NICs. The specification
// is left to the other formats.
func (c Cluster) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("name", c.Name)
	f.Add("state", c.State)
	f.Add("reason", c.Reason)
	f.Add("epoch", c.Epoch)
	f.Add("created", render.Time(c.Created.Time))
	if err := f.Write(w); err != nil {
		return err
	}
	if len(c.Guests) == 0 {
		return nil
	}
	if err := writeGuests(w, c.Guests); err != nil {
		return err
	}
	for _, g := range c.Leftovers {
		_, err := fmt.Fprintf(w, "\nleft from an earlier life (epoch %d): guest %s on node %s, %s", g.Epoch, g.Name, g.Node, g.State)
		if err != nil {
			return err
		}
	}
	if len(c.Leftovers) > 0 {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	if err := writeNICs(w, c.Guests); err != nil || len(c.Uplinks) == 0 {
		return err
	}
	rows := render.NewRows("NETWORK", "UPLINK", "NODE", "OUTSIDE", "RECEIVED", "SENT", "DROPPED", "WAITING")
	for _, u := range c.Uplinks {
		rows.Add(u.Network, u.Bridge, u.Node, u.Outside, u.FramesReceived, u.FramesSent, u.FramesDropped, u.FramesWaiting)
	}
	return section(w, rows)
}

func writeGuests(w io.Writer, guests []Guest) error {
	rows := render.NewRows("GUEST", "NODE", "STATE", "MEMORY", "VCPUS", "PID", "REASON")
	for _, g := range guests {
		rows.Add(g.Name, g.Node, g.State, render.Bytes(g.MemoryBytes), g.VCPUs, g.pid(), g.why())
	}
	return section(w, rows)
}

// why is the reason with its time.
func (g Guest) why() string {
	if g.Ended.IsZero() {
		return g.Reason
	}
	return g.Reason + " at " + render.Time(g.Ended.Time)
}

// pid is the process in words: nothing without one.
func (g Guest) pid() string {
	if g.PID == 0 {
		return ""
	}
	return fmt.Sprint(g.PID)
}

// dropped is how many frames were, and why.
func (n NIC) dropped() string {
	var why []string
	for _, reason := range slices.Sorted(maps.Keys(n.Drops)) {
		if frames := n.Drops[reason]; frames > 0 {
			why = append(why, fmt.Sprintf("%s %d", reason, frames))
		}
	}
	if why == nil {
		return fmt.Sprint(n.FramesDropped)
	}
	return fmt.Sprintf("%d (%s)", n.FramesDropped, strings.Join(why, ", "))
}

func writeNICs(w io.Writer, guests []Guest) error {
	rows, any := render.NewRows("GUEST", "NIC", "NETWORK", "MAC", "RECEIVED", "SENT", "DROPPED", "HELD", "RECORDED"), false
	for _, g := range guests {
		for _, n := range g.NICs {
			network := n.Network
			if n.Bridge != "" {
				network += " (bridge " + n.Bridge + ")"
			}
			rows.Add(g.Name, n.Name, network, n.MAC, n.FramesReceived, n.FramesSent, n.dropped(), n.FramesHeld, n.FramesRecorded)
			any = true
		}
	}
	if !any {
		return nil
	}
	return section(w, rows)
}

// section sets a table apart from what stands above it.
func section(w io.Writer, rows interface{ Write(io.Writer) error }) error {
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return rows.Write(w)
}

// Deleted is the document of "cluster delete" and "checkpoints delete".
type Deleted struct {
	Deleted    string  `json:"deleted"`
	FreedBytes *uint64 `json:"freed_bytes,omitempty"` // checkpoints only
}

// WriteTable writes one line.
func (d Deleted) WriteTable(w io.Writer) error {
	line := []string{"deleted " + d.Deleted}
	if d.FreedBytes != nil {
		line = append(line, render.Bytes(*d.FreedBytes)+" freed")
	}
	_, err := fmt.Fprintln(w, strings.Join(line, ", "))
	return err
}
