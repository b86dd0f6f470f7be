package main

import (
	"fmt"
	"slices"
	"strings"

	"fermata/protocol/failpoint"
)

// command is one verb, and how the cluster is before it.
type command struct {
	name    string
	args    []string // before the cluster's name
	running bool     // the guests run before it
}

var commands = []command{
	{"start", []string{"cluster", "start"}, false},
	{"restart", []string{"restart"}, false},
	{"rollback", []string{"rollback"}, true},
	{"stop", []string{"cluster", "stop"}, true},
}

// step is a place in a command, named after what has just been done. The process that
// reaches it stands still there while the fault comes.
type step struct {
	name  string
	point failpoint.Point
	node  bool // the process is the agent of the node that faults meet, else the leader
	stop  bool // also of stop
}

var steps = []step{
	{"check-guests", failpoint.CoordinatorAfterCheck, false, false},
	{"record", failpoint.CoordinatorAfterRecord, false, true},
	{"destroy-guests", failpoint.CoordinatorAfterDestroy, false, true},
	{"create-one-guest", failpoint.AgentAfterCreate, true, false},
	{"create-guests", failpoint.CoordinatorAfterCreate, false, false},
	{"release-begins", failpoint.AgentBeforeRelease, true, false},
	{"release-guests", failpoint.CoordinatorAfterRelease, false, false},
	{"end", failpoint.CoordinatorBeforeEnd, false, true},
}

// cell is one trial.
type cell struct {
	command command
	step    step
	fault   fault
}

func (c cell) String() string {
	return fmt.Sprintf("%s / %s / %s", c.command.name, c.step.name, c.fault.name)
}

// quickCells is what --quick tries: each command and each fault at least once.
var quickCells = []string{
	"rollback / check-guests / repository hangs",
	"rollback / create-guests / kill leader",
	"restart / create-one-guest / stop agent 5 s",
	"restart / destroy-guests / repository read-only",
	"restart / check-guests / repository full",
	"stop / record / node cut off",
	"start / release-guests / kill agent",
}

// cells lists what is asked for, in the order of the tables.
func (o options) cells() []cell {
	var all []cell
	for _, c := range commands {
		for _, s := range steps {
			for _, f := range faults {
				x := cell{c, s, f}
				switch {
				case c.name == "stop" && !s.stop:
				case o.quick && !slices.Contains(quickCells, x.String()):
				case !wanted(o.commands, c.name) || !wanted(o.steps, s.name) || !wanted(o.faults, f.name):
				default:
					all = append(all, x)
				}
			}
		}
	}
	return all
}

func wanted(list []string, name string) bool { return len(list) == 0 || slices.Contains(list, name) }

// choose reads a list of known words.
func choose(flag, text string, known []string, into *[]string) error {
	if text == "" {
		return nil
	}
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); !slices.Contains(known, word) {
			return fmt.Errorf("%s %s: want some of %s", flag, text, strings.Join(known, ", "))
		}
		*into = append(*into, word)
	}
	return nil
}

func commandNames() (names []string) {
	for _, c := range commands {
		names = append(names, c.name)
	}
	return names
}

func stepNames() (names []string) {
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}

func faultNames() (names []string) {
	for _, f := range faults {
		names = append(names, f.name)
	}
	return names
}
