// Package result is the contract of all experiments: the document they print,
// the machine and commit they name in it, the statistics of a sample, the table
// and the plot a person reads, and the exit status.
//
// An experiment defines the type of its rows and fills a Document. It passes no
// judgement by its exit status: goals that are not met are a result, too.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Document is what an experiment prints with -o json. R is a row, a structure
// whose fields carry their units in their names.
type Document[R any] struct {
	Experiment string  `json:"experiment"`
	Machine    Machine `json:"machine"`
	Commit     string  `json:"commit"`
	Rows       []R     `json:"rows"`
	Goals      []Goal  `json:"goals"`
}

// Goal compares what was hoped for with what was measured.
type Goal struct {
	Name string  `json:"name"`
	Want string  `json:"want"` // relation and number, such as "<= 1"
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

// AtMost is the goal that got does not exceed limit. What is no number meets
// no goal.
func AtMost(name string, limit, got float64) Goal {
	return Goal{Name: name, Want: "<= " + number(limit), Got: round(got), Met: got <= limit}
}

// AtLeast is the goal that got reaches limit.
func AtLeast(name string, limit, got float64) Goal {
	return Goal{Name: name, Want: ">= " + number(limit), Got: round(got), Met: got >= limit}
}

// Encode writes the document as indented JSON. What was encoded decodes to the
// same document.
func (d Document[R]) Encode(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(d); err != nil {
		return fmt.Errorf("encode result of %s: %w", d.Experiment, err)
	}
	return nil
}

// Decode reads one document and nothing behind it. A field it does not know is
// an error, and so is an empty document.
func Decode[R any](r io.Reader) (Document[R], error) {
	var d Document[R]
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, fmt.Errorf("decode result: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return d, errors.New("decode result: something follows the document")
	}
	return d, d.Validate()
}

// Validate reports every part that is missing at once.
func (d Document[R]) Validate() error {
	var errs []error
	for _, part := range []struct {
		name string
		is   bool
	}{
		{"experiment", d.Experiment != ""},
		{"commit", d.Commit != ""},
		{"machine", d.Machine.CPUs > 0 && d.Machine.Kernel != ""},
		{"rows", len(d.Rows) > 0},
	} {
		if !part.is {
			errs = append(errs, fmt.Errorf("result has no %s", part.name))
		}
	}
	for _, g := range d.Goals {
		if g.Name == "" || g.Want == "" {
			errs = append(errs, fmt.Errorf("goal %+v says nothing", g))
		}
	}
	return errors.Join(errs...)
}

// round keeps three decimals: more is noise, and makes documents differ.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }
