package spec

import (
	"fmt"
	"slices"

	"fermata/protocol/fault"
)

// Decode reads a specification. name is what problems call the file.
//
// On error: the error is of class invalid and errors.As finds *Problems in it,
// with everything that is wrong.
func Decode(name string, data []byte) (*Spec, error) {
	problems := &Problems{File: name}
	var s *Spec
	if root := parse(data, problems); root.present() {
		s = decodeSpec(root)
	}
	if len(problems.List) == 0 {
		// Whoever can read the file must be able to send it on.
		if _, err := s.Encode(); err != nil {
			problems.add(1, "", "%v", err)
		}
	}
	if len(problems.List) > 0 {
		problems.sort()
		return nil, fault.Wrap(fault.Invalid, problems, "")
	}
	return s, nil
}

// missing notes a key that must be there.
func missing(in place, key string) { in.problem("%s is missing", key) }

func decodeSpec(root place) *Spec {
	f, ok := root.fields("name", "networks", "defaults", "guests", "placement", "policies")
	if !ok {
		return nil
	}
	s := &Spec{Policy: Spread, Policies: Policies{PauseBudget: defaultPauseBudget, SkewBudget: defaultSkewBudget, Outside: OutsideDrop}}
	if at, given := f["name"]; given {
		s.Name = at.word()
	} else {
		missing(root, "name")
	}
	if at, given := f["policies"]; given {
		s.decodePolicies(at)
	}
	if at, given := f["networks"]; given {
		s.Networks = decodeNetworks(at, s.Policies.Outside)
	}
	if at, given := f["placement"]; given {
		s.decodePlacement(at)
	}
	if at, given := f["guests"]; given {
		s.decodeGuests(at, f["defaults"])
	} else {
		missing(root, "guests")
	}
	return s
}

// decodeNetworks reads the networks. Uplinks that say no policy have that of the cluster.
func decodeNetworks(at place, outside Outside) []Network {
	var list []Network
	for _, item := range at.items(maxNetworks) {
		f, ok := item.fields("name", "mtu", "uplink", "outside", "bridge")
		if !ok {
			continue
		}
		n := Network{MTU: defaultMTU}
		if name, given := f["name"]; given {
			n.Name = name.word()
			if n.Name != "" && slices.ContainsFunc(list, func(o Network) bool { return o.Name == n.Name }) {
				name.problem("there is another network %s", clip(n.Name))
			}
		} else {
			missing(item, "name")
		}
		if mtu, given := f["mtu"]; given {
			n.MTU = mtu.number(minMTU, maxMTU)
		}
		if uplink, given := f["uplink"]; given {
			n.Uplink, n.Outside = uplink.word(), outside
		}
		if policy, given := f["outside"]; given {
			n.Outside = Outside(policy.oneOf(outsidePolicies...))
			if n.Uplink == "" {
				policy.problem("says what goes out by an uplink, and the network has none")
			}
		}
		if bridge, given := f["bridge"]; given {
			n.Bridge = bridge.word()
			if n.Uplink != "" {
				bridge.problem("the network is the fabric's with an uplink, or a bridge, not both")
			}
		}
		list = append(list, n)
	}
	return list
}

var outsidePolicies = []string{string(OutsideDrop), string(OutsideAllow), string(OutsideHold)}

func (s *Spec) decodePlacement(at place) {
	f, _ := at.fields("policy")
	if p, given := f["policy"]; given {
		s.Policy = Policy(p.oneOf(string(Spread), string(Pack)))
	}
}

func (s *Spec) decodePolicies(at place) {
	f, _ := at.fields("pause_budget", "skew_budget", "outside")
	if p, given := f["pause_budget"]; given {
		s.Policies.PauseBudget = p.duration(minPauseBudget, maxPauseBudget)
	}
	if p, given := f["skew_budget"]; given {
		s.Policies.SkewBudget = p.duration(0, maxSkewBudget)
	}
	if p, given := f["outside"]; given {
		s.Policies.Outside = Outside(p.oneOf(outsidePolicies...))
	}
}

// templateKeys are the keys of defaults; a guest has them and its name.
var templateKeys = []string{"memory", "vcpus", "accel", "machine", "cpu", "kernel", "initrd", "cmdline", "disks", "nics", "node", "guest_agent", "guest_tool", "confidential"}

// guestKeys are the keys of one entry of guests.
var guestKeys = append([]string{"name", "count", "prefix", "adopt"}, templateKeys...)

// adoptedKeys are the keys of an entry that names a QEMU somebody else started.
var adoptedKeys = []string{"name", "adopt", "node", "confidential"}

// entry is one element of guests: one guest, or count of them.
type entry struct {
	at    place
	keys  map[string]place // own values over the defaults
	names []string
	adopt string // where the QEMU listens that is the guest; empty: it is made
}

func (s *Spec) decodeGuests(at, defaults place) {
	var shared map[string]place
	if defaults.present() {
		shared, _ = defaults.fields(templateKeys...)
		// Checked on their own, too: every guest may override a wrong default.
		decodeTemplate(shared)
	}
	items := at.items(maxGuests)
	if items != nil && len(items) == 0 {
		at.problem("a cluster has at least one guest")
	}
	var entries []entry
	total := 0
	for _, item := range items {
		own, ok := item.fields(guestKeys...)
		if !ok {
			continue
		}
		e := entry{at: item, names: guestNames(item, own), keys: own}
		if p, given := own["adopt"]; given {
			e.adopt = adoptedEntry(item, p, own)
			entries = append(entries, e)
			total += len(e.names)
			continue
		}
		for key, value := range shared {
			if _, overridden := own[key]; !overridden {
				own[key] = value
			}
		}
		entries = append(entries, e)
		total += len(e.names)
	}
	if total > maxGuests {
		at.problem("%d guests, at most %d are allowed", total, maxGuests)
		return
	}
	unique := newUnique()
	for _, e := range entries {
		if _, given := e.keys["adopt"]; given {
			for _, name := range e.names {
				unique.guest(e, name)
				g := Guest{Name: name, Adopt: e.adopt}
				if p, given := e.keys["node"]; given {
					g.Node = p.nodeName()
				}
				if p, given := e.keys["confidential"]; given {
					g.Confidential = decodeRanges(p)
				}
				s.Guests = append(s.Guests, g)
			}
			continue
		}
		template := decodeTemplate(e.keys)
		template.check(e.at)
		for _, name := range e.names {
			g := template.guest(variables{name: name, index: len(s.Guests) + 1, count: total})
			unique.guest(e, g.Name)
			s.finishNICs(&g, template, unique)
			s.Guests = append(s.Guests, g)
		}
	}
}

// adoptedEntry reads where the QEMU of an adopted guest listens. Defaults are not
// for it: it is as it was started.
func adoptedEntry(item, at place, own map[string]place) (socket string) {
	for key := range own {
		if !slices.Contains(adoptedKeys, key) {
			own[key].problem("%s is not for an adopted guest, which is as it was started", key)
		}
	}
	if _, given := own["node"]; !given {
		missing(item, "node")
	}
	socket, ok := at.text()
	if ok && socket == "" {
		at.problem("is empty")
	}
	if ok && !at.checkLine("path", socket, maxPath) {
		return ""
	}
	return socket
}

// guestNames is name, or prefix followed by 1 to count.
func guestNames(item place, f map[string]place) []string {
	name, named := f["name"]
	count, counted := f["count"]
	prefix, prefixed := f["prefix"]
	switch {
	case named && (counted || prefixed):
		item.problem("has a name as well as a count or prefix: give one or the other")
		return nil
	case named:
		return []string{name.word()}
	case !counted || !prefixed:
		item.problem("needs a name, or a count and a prefix")
		return nil
	}
	first := prefix.word()
	n := count.number(1, maxGuests)
	names := make([]string, 0, n)
	for i := range n {
		names = append(names, fmt.Sprintf("%s%d", first, i+1))
	}
	// The longest name decides whether the prefix leaves room for the number.
	if len(names) > 0 && wordForm.MatchString(first) && !wordForm.MatchString(names[len(names)-1]) {
		prefix.problem("%s is too long for a prefix", clip(first))
	}
	return names
}

// unique finds what two guests must not share.
type unique struct {
	names map[string]place
	macs  map[string]string // MAC to "guest NIC"
}

func newUnique() *unique {
	return &unique{names: map[string]place{}, macs: map[string]string{}}
}

func (u *unique) guest(e entry, name string) {
	if name == "" {
		return // a problem already
	}
	if first, taken := u.names[name]; taken {
		e.at.problem("there is another guest %s, on line %d", clip(name), first.line())
		return
	}
	u.names[name] = e.at
}

func (u *unique) mac(at place, mac, owner string) {
	if mac == "" {
		return
	}
	if first, taken := u.macs[mac]; taken {
		at.problem("MAC address %s of %s is also that of %s", mac, owner, first)
		return
	}
	u.macs[mac] = owner
}
