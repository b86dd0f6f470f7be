package spec

import (
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// template is what the guests of one entry have in common: every value as the
// file gives it, with variables where text may have them.
type template struct {
	guestBase Guest // all but names and text with variables
	hasMemory bool

	kernel, initrd, cmdline pattern
	disks                   []diskTemplate
	nics                    []nicTemplate
}

type diskTemplate struct {
	disk Disk // but for the path
	path pattern
}

type nicTemplate struct {
	nic     NIC
	network place
	at      place
}

// pattern is text that may hold variables.
type pattern struct {
	text string
	at   place
	bad  bool // there is a value, but it is no text
}

// maxPattern bounds text before its variables are replaced, once a guest. Text
// that long would be too long in the end, too.
const maxPattern = maxPath

// patternAt reads the pattern at a place, which may be absent.
func patternAt(at place) pattern {
	if !at.present() {
		return pattern{}
	}
	text, ok := at.text()
	if len(text) > maxPattern {
		at.problem("text of %d bytes, at most %d are allowed", len(text), maxPattern)
		return pattern{at: at, bad: true}
	}
	if err := checkVariables(text); err != nil {
		at.problem("%v", err)
	}
	return pattern{text: text, at: at, bad: !ok}
}

// decodeTemplate reads the values of one entry. Values that are not there keep
// their defaults. A wrong value of defaults is met again in every entry; the
// report holds each problem once.
func decodeTemplate(f map[string]place) *template {
	t := &template{guestBase: Guest{Accel: defaultAccel, Machine: defaultMachine, CPU: defaultCPU, VCPUs: 1}}
	g := &t.guestBase
	if p, given := f["memory"]; given {
		t.hasMemory = true // wrong memory is not missing memory
		g.MemoryBytes = p.memory()
	}
	if p, given := f["vcpus"]; given {
		g.VCPUs = p.number(1, maxVCPUs)
	}
	if p, given := f["accel"]; given {
		g.Accel = p.oneOf("kvm", "tcg", "auto")
	}
	if p, given := f["machine"]; given {
		g.Machine = p.machine()
	}
	if p, given := f["cpu"]; given {
		g.CPU = p.cpu()
	}
	if p, given := f["node"]; given {
		g.Node = p.nodeName()
	}
	if p, given := f["guest_agent"]; given {
		g.GuestAgent = p.boolean()
	}
	if p, given := f["guest_tool"]; given {
		g.GuestTool = p.boolean()
	}
	if p, given := f["confidential"]; given {
		g.Confidential = decodeRanges(p)
	}
	t.kernel = patternAt(f["kernel"])
	t.initrd = patternAt(f["initrd"])
	t.cmdline = patternAt(f["cmdline"])
	if p, given := f["disks"]; given {
		t.decodeDisks(p)
	}
	if p, given := f["nics"]; given {
		t.decodeNICs(p)
	}
	return t
}

// decodeRanges reads confidential memory.
func decodeRanges(at place) (ranges []Range) {
	for _, item := range at.items(maxRanges) {
		f, ok := item.fields("start", "size")
		if !ok {
			continue
		}
		var r Range
		right := true
		for _, part := range []struct {
			key  string
			into *uint64
			read func(place) (uint64, bool)
		}{{"start", &r.Start, place.address}, {"size", &r.Bytes, place.pages}} {
			p, given := f[part.key]
			if !given {
				missing(item, part.key)
				right = false
				continue
			}
			n, ok := part.read(p)
			*part.into, right = n, right && ok
		}
		if !right {
			continue
		}
		if r.Start+r.Bytes > maxAddress {
			item.problem("ends beyond any guest's memory")
		}
		if slices.ContainsFunc(ranges, func(o Range) bool { return o.Start < r.Start+r.Bytes && r.Start < o.Start+o.Bytes }) {
			item.problem("overlaps another range")
		}
		ranges = append(ranges, r)
	}
	return ranges
}

func (t *template) decodeDisks(at place) {
	for _, item := range at.items(maxDisks) {
		f, ok := item.fields("name", "path", "format", "read_only", "werror", "rerror", "quota")
		if !ok {
			continue
		}
		var d diskTemplate
		if p, given := f["name"]; given {
			d.disk.Name = p.word()
			if d.disk.Name != "" && slices.ContainsFunc(t.disks, func(o diskTemplate) bool { return o.disk.Name == d.disk.Name }) {
				p.problem("there is another disk %s in this guest", clip(d.disk.Name))
			}
		} else {
			missing(item, "name")
		}
		d.path = patternAt(f["path"])
		switch {
		case !f["path"].present():
			missing(item, "path")
		case f["path"].emptyText():
			f["path"].problem("is empty")
		}
		if p, given := f["format"]; given {
			d.disk.Format = p.oneOf("raw", "qcow2")
		} else {
			// Never guessed: a raw disk whose guest writes a qcow2 header into
			// it could name any file of the node as its backing file.
			missing(item, "format")
		}
		if p, given := f["read_only"]; given {
			d.disk.ReadOnly = p.boolean()
		}
		d.disk.decodeErrors(f)
		t.disks = append(t.disks, d)
	}
}

// decodeErrors reads what happens to requests that the node cannot carry out.
func (d *Disk) decodeErrors(f map[string]place) {
	if p, given := f["rerror"]; given {
		if d.ReadError = p.oneOf("report", "stop"); d.ReadError == "report" {
			d.ReadError = "" // the default
		}
	}
	for _, key := range []string{"werror", "quota"} {
		if p, given := f[key]; given && d.ReadOnly {
			p.problem("is of a disk that is never written")
		}
	}
	if p, given := f["werror"]; given {
		if d.WriteError = p.oneOf("enospc", "stop", "report"); d.WriteError == "enospc" {
			d.WriteError = "" // the default
		}
	}
	if p, given := f["quota"]; given {
		d.QuotaBytes = p.quota()
	}
}

func (t *template) decodeNICs(at place) {
	for i, item := range at.items(maxNICs) {
		f, ok := item.fields("network", "name", "mac")
		if !ok {
			continue
		}
		n := nicTemplate{at: item, nic: NIC{Name: fmt.Sprintf("eth%d", i)}}
		if p, given := f["network"]; given {
			n.nic.Network = p.word()
			n.network = p
		} else {
			missing(item, "network")
		}
		if p, given := f["name"]; given {
			n.nic.Name = p.word()
			n.at = p
		}
		if n.nic.Name != "" && slices.ContainsFunc(t.nics, func(o nicTemplate) bool { return o.nic.Name == n.nic.Name }) {
			n.at.problem("there is another network card %s in this guest", clip(n.nic.Name))
		}
		if p, given := f["mac"]; given {
			n.nic.MAC = p.mac()
			n.at = p
		}
		t.nics = append(t.nics, n)
	}
}

// check looks at values that only make sense together.
func (t *template) check(at place) {
	if !t.hasMemory {
		missing(at, "memory")
	}
	if t.kernel.text == "" && !t.kernel.bad {
		if t.initrd.text != "" {
			t.initrd.at.problem("an initrd needs a kernel")
		}
		if t.cmdline.text != "" {
			t.cmdline.at.problem("a command line needs a kernel")
		}
		if len(t.disks) == 0 {
			at.problem("nothing to boot: give a kernel or a disk")
		}
	}
}

// guest makes one guest of the template.
func (t *template) guest(v variables) Guest {
	g := t.guestBase
	g.Name = v.name
	g.Kernel = v.expand(t.kernel, "path", maxPath)
	g.Initrd = v.expand(t.initrd, "path", maxPath)
	g.Cmdline = v.expand(t.cmdline, "command line", maxCmdline)
	for _, d := range t.disks {
		disk := d.disk
		disk.Path = v.expand(d.path, "path", maxPath)
		g.Disks = append(g.Disks, disk)
	}
	return g
}

// finishNICs gives g its network cards, each with an address.
func (s *Spec) finishNICs(g *Guest, t *template, u *unique) {
	for _, n := range t.nics {
		nic := n.nic
		if nic.Network != "" && !slices.ContainsFunc(s.Networks, func(o Network) bool { return o.Name == nic.Network }) {
			n.network.problem("there is no network %s", clip(nic.Network))
		}
		if nic.MAC == "" {
			nic.MAC = generatedMAC(s.Name, g.Name, nic.Name)
		}
		u.mac(n.at, nic.MAC, g.Name+" "+nic.Name)
		g.NICs = append(g.NICs, nic)
	}
}

// generatedMAC makes an address out of what identifies a network card, so that
// it is the same whenever the file is read. It has the bit for locally
// administered addresses set and that for groups clear; 46 bits of a hash are
// left, where chance collisions need millions of cards.
func generatedMAC(cluster, guest, nic string) string {
	sum := sha256.Sum256([]byte(cluster + "\x00" + guest + "\x00" + nic))
	hw := net.HardwareAddr(sum[:6])
	hw[0] = hw[0]&^1 | 2
	return hw.String()
}

// variables are what ${name}, ${index} and ${count} stand for in one guest.
type variables struct {
	name  string
	index int // from 1, over the whole cluster
	count int // of the whole cluster
}

func (v variables) value(name string) (string, bool) {
	switch name {
	case "name":
		return v.name, true
	case "index":
		return strconv.Itoa(v.index), true
	case "count":
		return strconv.Itoa(v.count), true
	default:
		return "", false
	}
}

// expand puts the values in and checks the result.
func (v variables) expand(p pattern, what string, limit int) string {
	out, err := substitute(p.text, v.value)
	if err != nil {
		return "" // noted when the template was read
	}
	if p.at.present() && !p.at.checkLine(what, out, limit) {
		return ""
	}
	return out
}

func checkVariables(text string) error {
	_, err := substitute(text, variables{}.value)
	return err
}

// substitute replaces ${NAME} by its value and $${ by a plain ${.
func substitute(text string, value func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(text, "${")
		if i < 0 {
			b.WriteString(text)
			return b.String(), nil
		}
		if i > 0 && text[i-1] == '$' {
			b.WriteString(text[:i-1] + "${")
			text = text[i+2:]
			continue
		}
		b.WriteString(text[:i])
		name, rest, closed := strings.Cut(text[i+2:], "}")
		if !closed {
			return "", fmt.Errorf("%s does not end; write $${ for a plain ${", clip(text[i:]))
		}
		val, known := value(name)
		if !known {
			return "", fmt.Errorf("unknown variable %s (have ${name}, ${index}, ${count}; write $${ for a plain ${)", clip("${"+name+"}"))
		}
		b.WriteString(val)
		text = rest
	}
}

// escape is the inverse of substitute for text without variables.
func escape(text string) string { return strings.ReplaceAll(text, "${", "$${") }
