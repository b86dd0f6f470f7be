// Package trials tries the whole system from the operator's seat: the real
// binary, a real lab, real Linux guests. Each trial asks for one thing an
// operator may do wrong or meet, and then that nothing was lost by it.
package trials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
)

const (
	bootBudget = 4 * time.Minute
	stepBudget = time.Minute
)

// fermataBinary builds the binary of a trial; the tag failpoints makes one that
// can be told where to die.
func fermataBinary(t *testing.T, tags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fermata")
	if err := labrun.Build(t.Context(), path, tags...); err != nil {
		t.Fatal(err)
	}
	return path
}

// rig is a lab with one cluster of idle guests that tick.
type rig struct {
	*testing.T
	*labrun.Lab
	app     guests.Cluster
	cluster string
	memory  string
	extra   string // further lines of the specification's defaults
}

// newRig starts a lab. The directory lies below /tmp, because sockets want
// short paths.
func newRig(t *testing.T, nodes int, args ...string) *rig {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage)
	dir, err := os.MkdirTemp("", "fermata-trial-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		T: t, Lab: &labrun.Lab{Fermata: fermataBinary(t), Dir: dir, Nodes: nodes, Args: args},
		app:     guests.Cluster{Count: 2, Work: guests.Idle, Tick: 100 * time.Millisecond},
		cluster: "trial", memory: "128MiB",
	}
	t.Cleanup(func() {
		if err := r.CheckNothingLeft(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			r.Log(r.Logs())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) start() {
	r.Helper()
	if err := r.Start(r.Context()); err != nil {
		r.Fatal(err)
	}
}

// spec writes the cluster's specification and returns its path.
func (r *rig) spec(change func(string) string) string {
	r.Helper()
	image, err := mustrun.GuestDir()
	if err != nil {
		r.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\ndefaults:\n  accel: tcg\n  machine: pc-q35-7.2\n  cpu: qemu64\n  memory: %s\n", r.cluster, r.memory)
	fmt.Fprintf(&b, "  kernel: %s/vmlinuz\n  initrd: %s/initrd.img\n%sguests:\n", image, image, r.extra)
	for i := 1; i <= r.app.Count; i++ {
		fmt.Fprintf(&b, "  - name: %s\n    cmdline: %q\n    nics:\n      - network: lan\n", guests.Name(i), r.app.Cmdline(i))
	}
	text := b.String()
	if change != nil {
		if text = change(text); text == b.String() {
			r.Fatal("the change changed nothing")
		}
	}
	path := filepath.Join(r.Dir, "cluster.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
	return path
}

// must runs a command that is to succeed.
func (r *rig) must(into any, args ...string) {
	r.Helper()
	if err := r.Command(r.Context(), r.Output(), into, args...); err != nil {
		r.Fatal(err)
	}
}

// refused runs a command that is to fail with a class and to mention all of words.
func (r *rig) refused(class fault.Class, words []string, args ...string) {
	r.Helper()
	err := r.Command(r.Context(), r.Output(), nil, args...)
	var failed *labrun.Failed
	if !errors.As(err, &failed) {
		r.Errorf("fermata %s: %v, want a refusal of class %s", strings.Join(args, " "), err, class)
		return
	}
	r.Logf("refused: %v", failed)
	if failed.Status != class.ExitCode() {
		r.Errorf("fermata %s: exit status %d, want %d (%s)", strings.Join(args, " "), failed.Status, class.ExitCode(), class)
	}
	for _, w := range words {
		if !strings.Contains(failed.Said, w) {
			r.Errorf("fermata %s: message %q does not mention %q", strings.Join(args, " "), failed.Said, w)
		}
	}
}

// bring creates and starts the cluster and waits until every guest ticks.
func (r *rig) bring() {
	r.Helper()
	r.must(nil, "cluster", "create", "-f", r.spec(nil))
	r.must(nil, "cluster", "start", r.cluster)
	r.ticking(bootBudget)
}

func (r *rig) consoles() *labrun.Consoles {
	return &labrun.Consoles{Lab: r.Lab, Cluster: r.cluster, Count: r.app.Count}
}

// lastTick returns the number of the last heartbeat on a console, 0 for none.
func lastTick(console []byte) (last uint64) {
	labrun.Each(console, func(l guests.Line) {
		if tick, ok := l.Body.(guests.Tick); ok {
			last = tick.N
		}
	})
	return last
}

// ticking waits until every guest has printed further heartbeats.
func (r *rig) ticking(budget time.Duration) {
	r.Helper()
	first := map[string]uint64{}
	err := r.consoles().Await(r.Context(), budget, "heartbeats of all guests", func(all map[string][]byte) (bool, error) {
		for name, console := range all {
			now := lastTick(console)
			if _, ok := first[name]; !ok {
				first[name] = now
			}
			if now < first[name]+3 {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		r.Fatal(err)
	}
}

// checkpoint is what of `fermata checkpoint -o json` the trials read.
type checkpoint struct {
	ID              string  `json:"id"`
	Cut             string  `json:"cut"`
	SkewMS          float64 `json:"skew_ms"`
	MaxPauseMS      float64 `json:"max_pause_ms"`
	StoredBytes     uint64  `json:"stored_bytes"`
	FramesRecorded  uint64  `json:"frames_recorded"`
	FramesDiscarded uint64  `json:"frames_discarded"`

	Networks, Bypassed []string
	OffFabric          []string `json:"off_fabric"`
}

func (r *rig) checkpoint(flags ...string) (cp checkpoint) {
	r.Helper()
	r.must(&cp, append([]string{"checkpoint", r.cluster, "-o", "json"}, flags...)...)
	return cp
}

// checkpointIDs lists the cluster's checkpoints, oldest first.
func (r *rig) checkpointIDs() []string {
	r.Helper()
	var list struct {
		Checkpoints []checkpoint `json:"checkpoints"`
	}
	r.must(&list, "checkpoints", "list", r.cluster, "-o", "json")
	var ids []string
	for _, c := range list.Checkpoints {
		ids = append(ids, c.ID)
	}
	return ids
}

// agentPID returns the process id of a node's agent.
func (r *rig) agentPID(node string) string {
	r.Helper()
	pid, err := r.AgentPID(node)
	if err != nil {
		r.Fatal(err)
	}
	return strconv.Itoa(pid)
}

// run runs a tool of the host.
func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
