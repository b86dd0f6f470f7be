package repository

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Retention says which checkpoints of a cluster are kept; the others may be
// deleted. A checkpoint stays if any rule keeps it. The zero value keeps all.
type Retention struct {
	Last     int  // the newest so many
	Hourly   int  // the newest of each of the last so many hours that have one
	Daily    int  // the same for days
	Weekly   int  // the same for weeks, which begin on Monday
	Labelled bool // all that have a label
}

// IsZero says that there is no rule: everything is kept.
func (p Retention) IsZero() bool { return p == Retention{} }

// Validate refuses what can only be a mistake.
func (p Retention) Validate() error {
	var errs []error
	for _, f := range []struct {
		name string
		n    int
	}{{"last", p.Last}, {"hourly", p.Hourly}, {"daily", p.Daily}, {"weekly", p.Weekly}} {
		if f.n < 0 {
			errs = append(errs, fmt.Errorf("keep %s: negative (%d)", f.name, f.n))
		}
	}
	return errors.Join(errs...)
}

// Decision is what a Retention says of one checkpoint.
type Decision struct {
	Cluster string
	Epoch   uint64
	Created time.Time // zero if the manifest cannot be read
	Label   string
	Damaged bool // a verification has found damage that costs guests of it
	Keep    bool
	Why     string
}

// decide judges the checkpoints of a cluster, given and returned oldest first.
// The newest intact one always stays, and so does every one that cannot be read: what
// it holds is not known. Rules count intact ones only; a damaged one stays where a rule
// would keep it if it were intact, in addition to the others. Hours, days and weeks are those of UTC.
func (p Retention) decide(cluster string, entries []Entry) []Decision {
	out := make([]Decision, len(entries))
	periods := []struct {
		name string
		left int
		of   func(time.Time) string
		last string
	}{
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15h") }, ""},
		{"daily", p.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }, ""},
		{"weekly", p.Weekly, func(t time.Time) string {
			year, week := t.ISOWeek()
			return fmt.Sprintf("%d week %d", year, week)
		}, ""},
	}
	intact := 0
	for i, e := range slices.Backward(entries) {
		d := Decision{Cluster: cluster, Epoch: e.Epoch}
		if e.Err != nil {
			d.Keep, d.Why = true, "cannot be read: "+e.Err.Error()
			out[i] = d
			continue
		}
		d.Damaged = e.Damage != nil
		d.Created, d.Label = time.Unix(0, e.Manifest.CreatedUnixNS).UTC(), e.Manifest.Label
		keep := func(why string) {
			if !d.Keep {
				d.Keep, d.Why = true, why
			}
		}
		switch {
		case p.IsZero():
			keep("no rule")
		case intact == 0 && d.Damaged:
			keep("damaged, and no intact one is newer")
		case intact == 0:
			keep("newest")
		case intact < p.Last && d.Damaged:
			keep("damaged, does not count as one of the last")
		case intact < p.Last:
			keep("last")
		}
		if p.Labelled && d.Label != "" {
			keep("labelled")
		}
		// Each rule takes its periods from the newest on, whatever others keep.
		for n := range periods {
			r := &periods[n]
			if period := r.of(d.Created); r.left > 0 && period != r.last {
				if d.Damaged {
					keep("damaged, does not count as " + r.name)
					continue
				}
				r.left--
				r.last = period
				keep(r.name)
			}
		}
		if !d.Damaged {
			intact++
		}
		out[i] = d
	}
	return out
}
