package result

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Column is one column of the table a person reads.
type Column[R any] struct {
	Name string
	Cell func(R) string
}

// WriteTable writes machine, rows and goals.
func (d Document[R]) WriteTable(w io.Writer, columns []Column[R]) error {
	fmt.Fprintf(w, "%s at commit %s\n%s\n\n", d.Experiment, d.Commit, d.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cell func(Column[R]) string) {
		var cells []string
		for _, c := range columns {
			cells = append(cells, cell(c))
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	line(func(c Column[R]) string { return c.Name })
	for _, r := range d.Rows {
		line(func(c Column[R]) string { return c.Cell(r) })
	}
	if len(d.Goals) > 0 {
		fmt.Fprint(t, "\nGOAL\tWANT\tGOT\tMET\n")
	}
	for _, g := range d.Goals {
		met := "no"
		if g.Met {
			met = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", g.Name, g.Want, number(g.Got), met)
	}
	return t.Flush() // has the error of every write to w before it
}
