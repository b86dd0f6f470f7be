package render

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"fermata/protocol/text"
)

// Rows is a table under construction: a head and lines of cells.
type Rows struct {
	head  []string
	lines [][]string
}

// NewRows starts a table with the column names in head.
func NewRows(head ...string) *Rows { return &Rows{head: head} }

// Add appends a line. An empty cell shows as a dash, so that columns can be
// cut out by a script without losing count.
func (r *Rows) Add(cells ...any) {
	line := make([]string, len(cells))
	for i, c := range cells {
		line[i] = Clean(fmt.Sprint(c))
		if line[i] == "" {
			line[i] = "-"
		}
	}
	r.lines = append(r.lines, line)
}

// Write writes the table.
func (r *Rows) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range append([][]string{r.head}, r.lines...) {
		// No tab behind the last cell: tabwriter would pad it.
		if _, err := fmt.Fprintln(tw, strings.Join(line, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// Fields is a list of names and values, one a line.
type Fields struct {
	lines [][2]string
}

// Add appends a line; an empty value is left out.
func (f *Fields) Add(name string, value any) {
	if v := Clean(fmt.Sprint(value)); v != "" {
		f.lines = append(f.lines, [2]string{name, v})
	}
}

// Write writes the list.
func (f *Fields) Write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range f.lines {
		if _, err := fmt.Fprintf(tw, "%s:\t%s\n", l[0], l[1]); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// Clean makes text safe for one table cell on a terminal: characters that do not show
// as what they are, which labels of earlier programs may carry, become spaces.
func Clean(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !text.Printable(r) {
			return ' '
		}
		return r
	}, s))
}

// Bytes is a size for people: 1.5 GiB.
func Bytes[T int64 | uint64](n T) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	if n < 1024 {
		return strconv.FormatUint(uint64(n), 10) + " B"
	}
	v, i := float64(n)/1024, 0
	// 1023.95 and more would round to 1024.0 of the smaller unit.
	for v >= 1023.95 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v == math.Trunc(v) {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// Millis is a duration for people in milliseconds, with the digits that matter.
func Millis(ms float64) string {
	switch {
	case ms == 0:
		return "0"
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	case ms < 1000:
		return strconv.FormatFloat(ms, 'f', 1, 64)
	default:
		return strconv.FormatFloat(ms, 'f', 0, 64)
	}
}

// Time is an instant for people, in UTC and to the second; empty when unset.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
