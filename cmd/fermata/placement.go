package main

import (
	"strings"

	"fermata/cmd/internal/app"
)

// placement is what --on says.
type placement struct {
	guests map[string]string // guest to node
	nodes  []string          // in the order given, each once
}

// parseOn reads the values of --on, each a list of GUEST=NODE and NODE. An
// entry that says nothing, or contradicts another, is an error: a guest on
// the wrong node is noticed late.
func parseOn(values []string) (placement, error) {
	p := placement{guests: map[string]string{}}
	seen := map[string]bool{}
	for _, value := range values {
		for entry := range strings.SplitSeq(value, ",") {
			entry = strings.TrimSpace(entry)
			guest, node, pair := strings.Cut(entry, "=")
			switch {
			case entry == "":
				return placement{}, app.Usagef("--on %q: an entry is empty", value)
			case !pair && seen[entry]:
				return placement{}, app.Usagef("--on %s: node given twice", entry)
			case !pair:
				seen[entry] = true
				p.nodes = append(p.nodes, entry)
			case guest == "" || node == "" || strings.Contains(node, "="):
				return placement{}, app.Usagef("--on %s: want GUEST=NODE or NODE", entry)
			case p.guests[guest] != "":
				return placement{}, app.Usagef("--on %s: guest %s is placed twice", entry, guest)
			default:
				p.guests[guest] = node
			}
		}
	}
	return p, nil
}
