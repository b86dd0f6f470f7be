package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxProblems bounds the report on a file that is something else altogether.
const maxProblems = 100

// Problem is one thing wrong with a specification.
type Problem struct {
	Line int    // from 1
	Path string // of the value, e.g. guests[1].memory; empty: the file as a whole
	Text string // what is wrong with it
}

// Problems is everything wrong with a specification, in the order of lines.
// Decode returns it inside an error of class invalid; find it with errors.As.
type Problems struct {
	File    string
	List    []Problem
	Omitted int // how many more there were
}

// Error has one line a problem: cluster.yaml:12: guests[1].memory: reason.
func (p *Problems) Error() string {
	var b strings.Builder
	for i, one := range p.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d: ", p.File, one.Line)
		if one.Path != "" {
			fmt.Fprintf(&b, "%s: ", one.Path)
		}
		b.WriteString(one.Text)
	}
	if p.Omitted > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more problems", p.File, p.Omitted)
	}
	return b.String()
}

// add notes a problem. The same value may be looked at for several guests made
// from one template; a problem is only noted once.
func (p *Problems) add(line int, path, format string, args ...any) {
	one := Problem{Line: line, Path: path, Text: fmt.Sprintf(format, args...)}
	if slices.Contains(p.List, one) {
		return
	}
	if len(p.List) == maxProblems {
		p.Omitted++
		return
	}
	p.List = append(p.List, one)
}

func (p *Problems) sort() {
	slices.SortStableFunc(p.List, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
}
