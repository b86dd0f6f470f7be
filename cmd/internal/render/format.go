// Package render writes the result of a command in the form the operator
// asked for: a table for people, JSON or YAML for programs.
//
// A document is written the same way in JSON and YAML: the field names and
// their order are those of the view structs, which are a stable interface.
// Durations are milliseconds and sizes are bytes; only tables round.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Format is a form of output. The zero value is a table.
type Format int

// The formats.
const (
	Table Format = iota
	JSON
	YAML
)

var formatNames = []string{Table: "table", JSON: "json", YAML: "yaml"}

// FormatNames lists what ParseFormat takes.
func FormatNames() []string { return slices.Clone(formatNames) }

// String returns the word that ParseFormat takes.
func (f Format) String() string {
	if int(f) < 0 || int(f) >= len(formatNames) {
		return fmt.Sprintf("format(%d)", int(f))
	}
	return formatNames[f]
}

// Set is ParseFormat for a flag.
func (f *Format) Set(word string) error {
	i := slices.Index(formatNames, word)
	if i < 0 {
		return fmt.Errorf("output format %q: want %s", word, strings.Join(formatNames, ", "))
	}
	*f = Format(i)
	return nil
}

// Type is the placeholder in help texts.
func (f *Format) Type() string { return strings.Join(formatNames, "|") }

// Document is the result of a command. Its JSON encoding is what programs read.
type Document interface {
	// WriteTable writes what people read.
	WriteTable(w io.Writer) error
}

// Write writes doc in the format.
func Write(w io.Writer, f Format, doc Document) error {
	switch f {
	case Table:
		return doc.WriteTable(w)
	case JSON:
		data, err := encodeJSON(doc)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	case YAML:
		return writeYAML(w, doc)
	default:
		return fmt.Errorf("write document: unknown %s", f)
	}
}

func encodeJSON(doc Document) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // the output is no web page, and labels are to be read
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("encode json: %w", err)
	}
	return b.Bytes(), nil
}

// writeYAML goes through the JSON encoding, which is YAML as well, so that both
// have the same fields in the same order by construction.
func writeYAML(w io.Writer, doc Document) error {
	data, err := encodeJSON(doc)
	if err != nil {
		return err
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return fmt.Errorf("encode yaml: %w", err)
	}
	plainStyle(&root)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&root); err != nil {
		return fmt.Errorf("encode yaml: %w", err)
	}
	return enc.Close()
}

// plainStyle drops JSON's brackets and quotes wherever YAML does not need
// them. The tags stay, so a string that looks like a number keeps its quotes.
func plainStyle(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		plainStyle(c)
	}
}
