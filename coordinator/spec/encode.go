package spec

import (
	"bytes"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// The file form, in the order in which it is written.
type (
	fileSpec struct {
		Name      string        `yaml:"name"`
		Networks  []fileNetwork `yaml:"networks,omitempty"`
		Guests    []fileGuest   `yaml:"guests"`
		Placement filePlacement `yaml:"placement"`
		Policies  filePolicies  `yaml:"policies"`
	}
	fileNetwork struct {
		Name    string `yaml:"name"`
		MTU     uint32 `yaml:"mtu"`
		Uplink  string `yaml:"uplink,omitempty"`
		Outside string `yaml:"outside,omitempty"`
		Bridge  string `yaml:"bridge,omitempty"`
	}
	filePlacement struct {
		Policy string `yaml:"policy"`
	}
	filePolicies struct {
		PauseBudget string `yaml:"pause_budget"`
		SkewBudget  string `yaml:"skew_budget"`
		Outside     string `yaml:"outside"`
	}
	fileGuest struct {
		Name    string     `yaml:"name"`
		Adopt   string     `yaml:"adopt,omitempty"`
		Memory  string     `yaml:"memory,omitempty"`
		VCPUs   uint32     `yaml:"vcpus,omitempty"`
		Accel   string     `yaml:"accel,omitempty"`
		Machine string     `yaml:"machine,omitempty"`
		CPU     string     `yaml:"cpu,omitempty"`
		Kernel  string     `yaml:"kernel,omitempty"`
		Initrd  string     `yaml:"initrd,omitempty"`
		Cmdline string     `yaml:"cmdline,omitempty"`
		Disks   []fileDisk `yaml:"disks,omitempty"`
		NICs    []fileNIC  `yaml:"nics,omitempty"`
		Node    string     `yaml:"node,omitempty"`

		GuestAgent bool `yaml:"guest_agent,omitempty"`
		GuestTool  bool `yaml:"guest_tool,omitempty"`

		Confidential []fileRange `yaml:"confidential,omitempty"`
	}
	fileRange struct {
		Start string `yaml:"start"`
		Size  string `yaml:"size"`
	}
	fileDisk struct {
		Name     string `yaml:"name"`
		Path     string `yaml:"path"`
		Format   string `yaml:"format"`
		ReadOnly bool   `yaml:"read_only,omitempty"`
		Werror   string `yaml:"werror,omitempty"`
		Rerror   string `yaml:"rerror,omitempty"`
		Quota    string `yaml:"quota,omitempty"`
	}
	fileNIC struct {
		Network string `yaml:"network"`
		Name    string `yaml:"name"`
		MAC     string `yaml:"mac"`
	}
)

// Encode writes the canonical form: equal specifications give equal bytes, and
// Decode gives back an equal Spec. It returns an error when the form is larger
// than Decode reads.
func (s *Spec) Encode() ([]byte, error) {
	f := fileSpec{
		Name:      s.Name,
		Placement: filePlacement{Policy: string(s.Policy)},
		Policies: filePolicies{
			PauseBudget: s.Policies.PauseBudget.String(), SkewBudget: s.Policies.SkewBudget.String(), Outside: string(s.Policies.Outside),
		},
	}
	for _, n := range s.Networks {
		f.Networks = append(f.Networks, fileNetwork{Name: n.Name, MTU: n.MTU, Uplink: n.Uplink, Outside: string(n.Outside), Bridge: n.Bridge})
	}
	for i := range s.Guests {
		f.Guests = append(f.Guests, fileGuestOf(&s.Guests[i]))
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return nil, fmt.Errorf("encode cluster %s: %w", s.Name, err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("encode cluster %s: %w", s.Name, err)
	}
	if b.Len() > MaxBytes {
		return nil, fmt.Errorf("cluster %s with its %d guests written out has %d bytes, at most %d are allowed", s.Name, len(s.Guests), b.Len(), MaxBytes)
	}
	return b.Bytes(), nil
}

func fileGuestOf(g *Guest) fileGuest {
	if g.Adopt != "" {
		return fileGuest{Name: g.Name, Adopt: g.Adopt, Node: g.Node, Confidential: fileRanges(g.Confidential)}
	}
	f := fileGuest{
		Name:    g.Name,
		Memory:  formatSize(g.MemoryBytes),
		VCPUs:   g.VCPUs,
		Accel:   g.Accel,
		Machine: g.Machine,
		CPU:     g.CPU,
		Kernel:  escape(g.Kernel),
		Initrd:  escape(g.Initrd),
		Cmdline: escape(g.Cmdline),
		Node:    g.Node,

		GuestAgent: g.GuestAgent, GuestTool: g.GuestTool, Confidential: fileRanges(g.Confidential),
	}
	for _, d := range g.Disks {
		disk := fileDisk{Name: d.Name, Path: escape(d.Path), Format: d.Format, ReadOnly: d.ReadOnly, Werror: d.WriteError, Rerror: d.ReadError}
		if d.QuotaBytes != 0 {
			disk.Quota = formatSize(d.QuotaBytes)
		}
		f.Disks = append(f.Disks, disk)
	}
	for _, n := range g.NICs {
		f.NICs = append(f.NICs, fileNIC{Network: n.Network, Name: n.Name, MAC: n.MAC})
	}
	return f
}

func fileRanges(ranges []Range) (out []fileRange) {
	for _, r := range ranges {
		out = append(out, fileRange{Start: fmt.Sprintf("%#x", r.Start), Size: formatSize(r.Bytes)})
	}
	return out
}
