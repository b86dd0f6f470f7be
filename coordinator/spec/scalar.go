package spec

import (
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// wordForm is a name inside a cluster: a DNS label, as it becomes a host name.
var wordForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// nodeForm is a node's name, as certificates carry it.
var nodeForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// machineForm is a PC machine type that ends in a version.
var machineForm = regexp.MustCompile(`^pc-(q35|i440fx)-[0-9]+\.[0-9]+(\.[0-9]+)?$`)

// cpuForm is a CPU model without feature flags.
var cpuForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// word reads a name.
func (p place) word() string {
	s, ok := p.text()
	if ok && !wordForm.MatchString(s) {
		p.problem("%s is not a name (1 to 63 of a-z, 0-9 and -, no - at the ends)", clip(s))
	}
	return s
}

func (p place) nodeName() string {
	s, ok := p.text()
	if ok && !nodeForm.MatchString(s) {
		p.problem("%s is not the name of a node", clip(s))
	}
	return s
}

// oneOf reads one of a few words.
func (p place) oneOf(words ...string) string {
	s, ok := p.text()
	if ok && !contains(words, s) {
		p.problem("%s is not one of %s", clip(s), strings.Join(words, ", "))
	}
	return s
}

// machine reads a machine type. An alias such as q35 means another machine
// with every version of QEMU, and no checkpoint could be restarted.
func (p place) machine() string {
	s, ok := p.text()
	if ok && !machineForm.MatchString(s) {
		p.problem("%s is not a versioned PC machine type (such as %s)", clip(s), defaultMachine)
	}
	return s
}

// cpu reads a CPU model. host and max differ from node to node.
func (p place) cpu() string {
	s, ok := p.text()
	switch {
	case !ok:
	case s == "host" || s == "max" || s == "base":
		p.problem("%s depends on the node; name a model (such as %s)", clip(s), defaultCPU)
	case !cpuForm.MatchString(s):
		p.problem("%s is not a CPU model", clip(s))
	}
	return s
}

// checkLine notes what is wrong with s, which p or a pattern in p gave. It
// tells whether nothing is.
func (p place) checkLine(what, s string, limit int) bool {
	switch {
	case len(s) > limit:
		p.problem("%s of %d bytes, at most %d are allowed", what, len(s), limit)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		p.problem("%s has a control character: %s", what, clip(s))
	default:
		return true
	}
	return false
}

func (p place) boolean() bool {
	s, ok := p.text()
	if !ok {
		return false
	}
	if s != "true" && s != "false" {
		p.problem("%s is not true or false", clip(s))
	}
	return s == "true"
}

// number reads a decimal number in a range.
func (p place) number(low, high uint32) uint32 {
	s, ok := p.text()
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < uint64(low) || n > uint64(high) {
		p.problem("%s is not a number from %d to %d", clip(s), low, high)
		return 0
	}
	return uint32(n)
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,15}) ?(|B|KiB|MiB|GiB|TiB)$`)

var sizeUnits = map[string]uint64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

func parseSize(s string) (uint64, bool) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	unit := sizeUnits[m[2]]
	if err != nil || n > (1<<63)/unit {
		return 0, false
	}
	return n * unit, true
}

// formatSize writes n in the largest unit that divides it.
func formatSize(n uint64) string {
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n != 0 && n%sizeUnits[unit] == 0 {
			return strconv.FormatUint(n/sizeUnits[unit], 10) + unit
		}
	}
	return strconv.FormatUint(n, 10)
}

// memory reads the size of a guest's memory.
func (p place) memory() uint64 {
	s, ok := p.text()
	if !ok {
		return 0
	}
	n, ok := parseSize(s)
	switch {
	case !ok:
		p.problem("%s is not a size (such as 160MiB or 1GiB)", clip(s))
	case n < minMemory || n > maxMemory:
		p.problem("%s is not between %s and %s", clip(s), formatSize(minMemory), formatSize(maxMemory))
	case n%memoryStep != 0:
		p.problem("%s is not a multiple of %s", clip(s), formatSize(memoryStep))
	default:
		return n
	}
	return 0
}

// pageBytes is the smallest unit of memory.
const pageBytes = 4096

// pages reads a size of whole pages, at least one.
func (p place) pages() (uint64, bool) {
	s, ok := p.text()
	if !ok {
		return 0, false
	}
	n, ok := parseSize(s)
	if !ok || n == 0 || n%pageBytes != 0 || n > maxMemory {
		p.problem("%s is not a size in whole pages of %s (such as 64MiB)", clip(s), formatSize(pageBytes))
		return 0, false
	}
	return n, true
}

// quota reads how much of a file system a disk may take.
func (p place) quota() uint64 {
	s, ok := p.text()
	if !ok {
		return 0
	}
	n, ok := parseSize(s)
	if !ok || n < minQuota || n > maxQuota || n%quotaStep != 0 {
		p.problem("%s is not a size between %s and %s, in steps of %s (such as 20GiB)", clip(s), formatSize(minQuota), formatSize(maxQuota), formatSize(quotaStep))
		return 0
	}
	return n
}

// address reads where a page begins: hexadecimal, or as a size.
func (p place) address() (uint64, bool) {
	s, ok := p.text()
	if !ok {
		return 0, false
	}
	n, ok := parseSize(s)
	if digits, hex := strings.CutPrefix(s, "0x"); hex {
		var err error
		n, err = strconv.ParseUint(digits, 16, 64)
		ok = err == nil
	}
	if !ok || n%pageBytes != 0 || n > maxAddress {
		p.problem("%s is not the address of a page (such as 0x20000000 or 512MiB)", clip(s))
		return 0, false
	}
	return n, true
}

func (p place) duration(low, high time.Duration) time.Duration {
	s, ok := p.text()
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.problem("%s is not a duration (such as 500ms or 10s)", clip(s))
	case d < low || d > high:
		p.problem("%s is not between %s and %s", clip(s), low, high)
	default:
		return d
	}
	return 0
}

// mac reads the address of one network card and writes it the canonical way.
func (p place) mac() string {
	s, ok := p.text()
	if !ok {
		return ""
	}
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != 6:
		p.problem("%s is not a MAC address (such as 52:54:00:00:00:01)", clip(s))
	case hw[0]&1 != 0:
		p.problem("%s is a group address, no card can have it", clip(s))
	case hw.String() == "00:00:00:00:00:00":
		p.problem("%s is no address", clip(s))
	default:
		return hw.String()
	}
	return ""
}
