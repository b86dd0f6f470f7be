package main

import (
	"context"
	"fmt"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

// hpcc is HPC Challenge with a rank on each of two guests.
type hpcc struct{ n int }

func (*hpcc) title() string { return "hpcc" }

func (h *hpcc) app() guests.Cluster {
	return guests.Cluster{Count: 2, Work: guests.RunHPCC, HPCC: guests.Challenge{N: h.n}}
}

// working reports whether HPL runs, the last part of HPC Challenge and the one whose
// result depends on every step before it.
func (*hpcc) working(consoles map[string][]byte) bool { return section(consoles) == "HPL" }

// section is the part of HPC Challenge that runs; "" before the first.
func section(consoles map[string][]byte) (last string) {
	labrun.Each(consoles[guests.Name(1)], func(l guests.Line) {
		switch b := l.Body.(type) {
		case guests.HPCCStart:
			last = ""
		case guests.HPCC:
			last = b.Section
		}
	})
	return last
}

func (h *hpcc) finish(ctx context.Context, t *trial, r *row) error {
	if err := h.count(ctx, t, r); err != nil {
		return err
	}
	for i := 2; i >= 1; i-- {
		if err := t.reset(ctx, i); err != nil {
			return err
		}
		r.Reboots++
	}
	// Guest 1 starts the program on both once more.
	return t.await(ctx, "HPC Challenge to run again", func(all map[string][]byte) (bool, error) {
		return section(all) != "", nil
	})
}

// count waits for the results, and counts them.
func (h *hpcc) count(ctx context.Context, t *trial, r *row) error {
	var done *guests.HPCCDone
	err := t.await(ctx, "HPC Challenge to end", func(all map[string][]byte) (bool, error) {
		labrun.Each(all[guests.Name(1)], func(l guests.Line) {
			if b, ok := l.Body.(guests.HPCCDone); ok {
				done = &b
			}
		})
		return done != nil, nil
	})
	if err != nil {
		return err
	}
	for what, right := range map[string]bool{
		"exit status":                      done.Status == 0,
		"own verdict":                      done.Success,
		"order of the matrices":            done.N == h.n,
		"residual of HPL":                  done.HPLPassed >= 1 && done.HPLFailed == 0,
		"residual of the matrix transpose": done.PTRANSResidual < 16, // its own threshold
		"table of random access":           done.RandomAccessErrors == 0,
		"error of the Fourier transform":   done.FFTError < 16,
	} {
		r.Checked++
		if !right {
			r.Wrong++
			t.note("hpcc: wrong %s in %s", what, fmt.Sprintf("%+v", *done))
		}
	}
	return nil
}
