package coordinator

import (
	"errors"
	"fmt"
	"time"

	"fermata/protocol/round"
)

// Timeouts bounds each step of an operation. A step whose time has run out
// ends the operation; the zero value of a field selects the default beside it.
//
// Create and Persist move as many bytes as the guests have, so theirs is the
// longest silence: every message of the node begins it anew.
type Timeouts struct {
	Describe time.Duration // a node's present state. Default 3s
	Create   time.Duration // silence while a node makes guests. Default 2m
	Release  time.Duration // a node lets its guests run. Default 30s
	Destroy  time.Duration // a node ends its guests. Default 1m

	Prepare time.Duration // a node gets ready for a cut. Default 1m
	Cut     time.Duration // from the cut until a node's guests run again, beyond their pause budget. Default 1m
	Persist time.Duration // silence while a node writes its images. Default 2m
	Finish  time.Duration // one attempt to tell a node the outcome. Default 10s
}

func (t *Timeouts) applyDefaults() {
	for _, f := range t.fields() {
		if *f.value == 0 {
			*f.value = f.byDefault
		}
	}
}

func (t *Timeouts) validate() error {
	var errs []error
	for _, f := range t.fields() {
		if *f.value < 0 {
			errs = append(errs, fmt.Errorf("timeouts: %s: negative (%s)", f.name, *f.value))
		}
		if (f.value == &t.Prepare || f.value == &t.Cut) && *f.value >= round.SilenceBudget {
			errs = append(errs, fmt.Errorf("timeouts: %s: %s, less than %s: a node that hears nothing of its coordinator for so long gives the round up",
				f.name, *f.value, round.SilenceBudget))
		}
	}
	return errors.Join(errs...)
}

type timeout struct {
	name      string
	value     *time.Duration
	byDefault time.Duration
}

func (t *Timeouts) fields() []timeout {
	return []timeout{
		{"describe", &t.Describe, 3 * time.Second},
		{"create", &t.Create, 2 * time.Minute},
		{"release", &t.Release, 30 * time.Second},
		{"destroy", &t.Destroy, time.Minute},
		{"prepare", &t.Prepare, time.Minute},
		{"cut", &t.Cut, time.Minute},
		{"persist", &t.Persist, 2 * time.Minute},
		{"finish", &t.Finish, 10 * time.Second},
	}
}
