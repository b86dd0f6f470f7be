package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/vmm/qmp"
)

const (
	nodes     = 2
	memoryMiB = 256

	bootBudget  = 20 * time.Minute // also of a program to come to its last part
	resetBudget = 30 * time.Second // until QEMU has reset a guest
)

// workload is a program of others in the two guests of a cluster.
type workload interface {
	title() string // the cluster's name, too
	app() guests.Cluster

	// working reports whether the program is at work, by the guests' consoles.
	working(consoles map[string][]byte) bool

	// finish waits for results behind the last rollback, and counts them in r; then
	// it resets each guest and counts the results behind that, too.
	finish(ctx context.Context, t *trial, r *row) error
}

// trial is a lab with the cluster of one workload.
type trial struct {
	*labrun.Scratch
	workload
	consoles labrun.Consoles
	note     func(string, ...any)
}

// measure takes a workload through everything.
func measure(ctx context.Context, o options, w workload, note func(string, ...any)) (r row, err error) {
	note("%s: building fermata", w.title())
	lab, err := labrun.NewScratch(ctx, o.scratch, name, nodes)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, lab.End()) }()
	t := &trial{Scratch: lab, workload: w, note: note}
	r = row{Workload: w.title(), Seed: o.seed}
	note("%s: booting", w.title())
	if err := t.boot(ctx, o.guestDir); err != nil {
		return r, err
	}
	if err := t.endure(ctx, o, &r); err != nil {
		return r, err
	}
	note("%s: waiting for results", w.title())
	return r, w.finish(ctx, t, &r)
}

func (t *trial) boot(ctx context.Context, guestDir string) error {
	guestDir, err := filepath.Abs(guestDir)
	if err != nil {
		return err
	}
	app := t.app()
	if err := app.Validate(); err != nil {
		return fmt.Errorf("describe guests: %w", err)
	}
	kernel, initrd := guests.AppImageFiles(guestDir)
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\nplacement:\n  policy: spread\n", t.title())
	fmt.Fprintf(&b, "defaults:\n  accel: tcg\n  memory: %dMiB\n  kernel: %s\n  initrd: %s\n  nics:\n    - network: lan\nguests:\n", memoryMiB, kernel, initrd)
	for i := 1; i <= app.Count; i++ {
		fmt.Fprintf(&b, "  - name: %s\n    cmdline: %q\n", guests.Name(i), app.Cmdline(i))
	}
	if err := t.Bring(ctx, t.title(), b.String()); err != nil {
		return err
	}
	t.consoles = labrun.Consoles{Lab: t.Lab, Cluster: t.title(), Count: app.Count}
	return t.await(ctx, "the program to be at work", func(all map[string][]byte) (bool, error) { return t.working(all), nil })
}

func (t *trial) await(ctx context.Context, what string, is func(map[string][]byte) (bool, error)) error {
	return t.consoles.Await(ctx, bootBudget, what, is)
}

// endure takes the checkpoints of an ordeal, with all that is done around them.
func (t *trial) endure(ctx context.Context, o options, r *row) error {
	d := draw(o)
	for i := range o.checkpoints {
		if err := labrun.Sleep(ctx, o.alone); err != nil {
			return err
		}
		if d.kill[i] {
			node := "n" + strconv.Itoa(1+d.node[i])
			t.note("%s: killing the agent of %s", t.title(), node)
			if err := t.RenewAgent(ctx, node, "", t.title(), t.app().Count); err != nil {
				return err
			}
			r.AgentKills++
		}
		var cp struct {
			ID         string  `json:"id"`
			MaxPauseMS float64 `json:"max_pause_ms"`
		}
		if err := t.Command(ctx, io.Discard, &cp, "checkpoint", t.title(), "-o", "json"); err != nil {
			return err
		}
		r.Checkpoints++
		r.PauseMS = append(r.PauseMS, cp.MaxPauseMS)
		if !d.rollback[i] {
			continue
		}
		t.note("%s: rolling back to %s", t.title(), cp.ID)
		if err := labrun.Sleep(ctx, o.alone); err != nil {
			return err
		}
		if err := t.Command(ctx, io.Discard, nil, "rollback", t.title(), "--from", cp.ID); err != nil {
			return err
		}
		r.Rollbacks++
		t.consoles = labrun.Consoles{Lab: t.Lab, Cluster: t.title(), Count: t.app().Count} // they begin anew
	}
	return nil
}

// reset resets a guest, as its reset button would, and waits until it has booted again.
func (t *trial) reset(ctx context.Context, index int) error {
	guest := guests.Name(index)
	t.note("%s: resetting %s", t.title(), guest)
	all, err := t.consoles.Read(ctx)
	if err != nil {
		return err
	}
	before := boots(all[guest])
	if err := t.press(ctx, guest); err != nil {
		return fmt.Errorf("reset guest %s: %w", guest, err)
	}
	return t.await(ctx, guest+" to boot again", func(all map[string][]byte) (bool, error) {
		return boots(all[guest]) > before, nil
	})
}

// press gives QEMU the command. Fermata has no verb for it: a guest is reset by whoever
// uses it, mostly from inside.
func (t *trial) press(ctx context.Context, guest string) error {
	sockets, err := filepath.Glob(filepath.Join(t.Dir, "nodes", "*", "state", "guests", t.title()+"."+guest, "guard.sock"))
	if err != nil || len(sockets) != 1 {
		return errors.Join(err, fmt.Errorf("%d monitors, want one", len(sockets)))
	}
	ctx, cancel := context.WithTimeout(ctx, resetBudget)
	defer cancel()
	monitor, err := qmp.Dial(ctx, sockets[0])
	if err != nil {
		return err
	}
	return errors.Join(monitor.Execute(ctx, "system_reset", nil, nil), monitor.Close())
}

// boots counts how often a guest says that it has booted.
func boots(console []byte) (n int) {
	labrun.Each(console, func(l guests.Line) {
		if _, ok := l.Body.(guests.Ready); ok {
			n++
		}
	})
	return n
}
