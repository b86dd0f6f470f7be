package spec

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// place is a value of the file together with where it stands, so that
// whatever is found out about it later can be told with line and path. The
// zero place is a value that is not there.
type place struct {
	node *yaml.Node
	path string
	in   *Problems
}

func (p place) present() bool { return p.node != nil }

func (p place) line() int {
	if p.node == nil {
		return 1
	}
	return max(p.node.Line, 1)
}

func (p place) problem(format string, args ...any) {
	p.in.add(p.line(), p.path, format, args...)
}

func (p place) child(key string, n *yaml.Node) place {
	path := key
	if p.path != "" && !strings.HasPrefix(key, "[") {
		path = p.path + "." + key
	} else if p.path != "" {
		path = p.path + key
	}
	return place{node: n, path: path, in: p.in}
}

// parse reads the one document of data. It returns the zero place when that is
// impossible, with the reason noted.
func parse(data []byte, in *Problems) place {
	if len(data) > MaxBytes {
		in.add(1, "", "file of %d bytes, at most %d are read", len(data), MaxBytes)
		return place{}
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		in.add(1, "", "file is empty")
		return place{}
	} else if err != nil {
		syntaxProblem(err, in)
		return place{}
	}
	if err := dec.Decode(&more); err == nil {
		in.add(more.Line, "", "a second document begins here: one file is one cluster")
		return place{}
	} else if !errors.Is(err, io.EOF) {
		syntaxProblem(err, in)
		return place{}
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		in.add(1, "", "file is empty")
		return place{}
	}
	return place{node: root, in: in}
}

// yamlLine finds the line in a syntax error. The library reports it in the
// text alone.
var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

func syntaxProblem(err error, in *Problems) {
	line, text := 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line, text = n, m[2]
		}
	}
	in.add(line, "", "not YAML: %s", strings.ReplaceAll(text, "\n", " "))
}

// resolved refuses what is not plainly there: aliases (a few bytes of which
// can stand for gigabytes), and keys without a value.
func (p place) resolved() bool {
	switch {
	case p.node == nil:
		return false
	case p.node.Kind == yaml.AliasNode:
		p.problem("aliases (*%s) are not understood; use defaults for what guests share", p.node.Value)
		return false
	case p.node.Kind == yaml.ScalarNode && p.node.ShortTag() == "!!null":
		p.problem("has no value")
		return false
	}
	return true
}

// fields splits a mapping into the values of known keys. Unknown and doubled
// keys are problems. The second result is false when p is no mapping.
func (p place) fields(known ...string) (map[string]place, bool) {
	if !p.resolved() {
		return nil, false
	}
	if p.node.Kind != yaml.MappingNode {
		p.problem("want a mapping with keys such as %s", known[0])
		return nil, false
	}
	found := make(map[string]place, len(known))
	for i := 0; i+1 < len(p.node.Content); i += 2 {
		key, value := p.node.Content[i], p.node.Content[i+1]
		at := p.child(shortKey(key.Value), value)
		if key.Kind != yaml.ScalarNode || !contains(known, key.Value) {
			place{key, p.path, p.in}.problem("unknown key %s (have %s)", keyText(key), strings.Join(known, ", "))
			continue
		}
		if first, twice := found[key.Value]; twice {
			place{key, at.path, p.in}.problem("given twice, first on line %d", first.line())
			continue
		}
		found[key.Value] = at
	}
	return found, true
}

func contains(list []string, s string) bool {
	for _, one := range list {
		if one == s {
			return true
		}
	}
	return false
}

// keyText shows a key that may be anything, a mapping for instance.
func keyText(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return "that is not a word"
	}
	return clip(n.Value)
}

// maxShown bounds how much of a wrong value a problem repeats.
const maxShown = 60

func clip(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "…"
	}
	return strconv.Quote(strings.ToValidUTF8(s, "?"))
}

func shortKey(s string) string {
	if len(s) > maxShown {
		return s[:maxShown]
	}
	return s
}

// items are the elements of a list of at most limit.
func (p place) items(limit int) []place {
	if !p.resolved() {
		return nil
	}
	if p.node.Kind != yaml.SequenceNode {
		p.problem("want a list")
		return nil
	}
	if len(p.node.Content) > limit {
		p.problem("%d entries, at most %d are allowed", len(p.node.Content), limit)
		return nil
	}
	list := make([]place, 0, len(p.node.Content))
	for i, n := range p.node.Content {
		list = append(list, p.child(fmt.Sprintf("[%d]", i), n))
	}
	return list
}

// text is the scalar as it was written. Numbers and booleans are text where
// text is wanted: a guest may be called 7.
func (p place) text() (string, bool) {
	if !p.resolved() {
		return "", false
	}
	if p.node.Kind != yaml.ScalarNode {
		p.problem("want a single value")
		return "", false
	}
	switch p.node.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
		return p.node.Value, true
	default:
		p.problem("tag %s is not understood", clip(p.node.ShortTag()))
		return "", false
	}
}

// emptyText tells whether the value is "", which some values may not be.
func (p place) emptyText() bool {
	return p.node.Kind == yaml.ScalarNode && p.node.ShortTag() == "!!str" && p.node.Value == ""
}
