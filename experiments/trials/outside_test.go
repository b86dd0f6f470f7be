package trials

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/mustrun"
)

// bridge is what the lab's nodes call the world outside.
const bridge = "office"

// outsider is a canary that is no guest: it runs on a node, where it is at the bridge,
// and takes itself for the cluster's last guest.
type outsider struct {
	name   string // as a guest
	cmd    *exec.Cmd
	ended  chan error
	report *lockedBuffer
}

// lockedBuffer is a buffer that is read while it grows.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// outside starts a canary on a node. It ends with the test.
func (r *rig) outside(node string, index int, app guests.Cluster) *outsider {
	r.Helper()
	image, err := mustrun.GuestDir()
	if err != nil {
		r.Fatal(err)
	}
	pid, err := r.AgentPID(node)
	if err != nil {
		r.Fatal(err)
	}
	o := &outsider{name: guests.Name(index), ended: make(chan error, 1), report: &lockedBuffer{}}
	o.cmd = exec.Command(filepath.Join(image, "canary"), "-i", fmt.Sprint(index), "-c", fmt.Sprint(app.Count), "-n", "10.77.0",
		"-d", bridge, "-r", fmt.Sprint(app.Canary.Rate), "-s", fmt.Sprint(app.Canary.SizeBytes))
	o.cmd.Stdout, o.cmd.Stderr = o.report, r.Output()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread stays in the node's namespace, and ends
		started <- func() error {
			ns, err := netns.GetFromPid(pid)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			link, err := netlink.LinkByName(bridge)
			if err != nil {
				return err
			}
			address := &net.IPNet{IP: net.IP(app.Address(index).AsSlice()), Mask: net.CIDRMask(24, 32)}
			return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: address}), o.cmd.Start())
		}()
	}()
	if err := <-started; err != nil {
		r.Fatal(err)
	}
	go func() { o.ended <- o.cmd.Wait() }()
	r.Cleanup(func() {
		_ = o.cmd.Process.Kill()
		<-o.ended
	})
	return o
}

// fromGuests adds up what has come from the guests, once all is counted.
func (o *outsider) fromGuests(r *rig) (t guests.Totals, complete bool) {
	r.Helper()
	s, err := labrun.Summarise(map[string][]byte{o.name: o.report.bytes()})
	if err != nil {
		r.Fatal(err)
	}
	return s.Totals, len(s.Pairs) > 0
}

// TestOutside_SeesNothingUndone has guests send numbered datagrams to somebody outside,
// and rolls them back. With hold-until-durable he gets each exactly once, though the
// guests send a part of them twice. With allow he sees that part twice.
func TestOutside_SeesNothingUndone(t *testing.T) {
	for _, policy := range []string{"hold-until-durable", "allow"} {
		t.Run(policy, func(t *testing.T) {
			mustrun.Need(t, mustrun.UFFD)
			r := newRig(t, 2, "--bridge", bridge)
			r.app.Count, r.app.Work = 3, guests.RunCanary // the third is outside
			r.app.Canary = guests.Canary{Rate: 50, SizeBytes: 200, Length: 12 * time.Second}
			r.start()
			r.must(nil, "cluster", "create", "-f", r.spec(func(s string) string {
				s = strings.Replace(s, "  - name: lan\n", "  - name: lan\n    uplink: "+bridge+"\n    outside: "+policy+"\n", 1)
				before, _, _ := strings.Cut(s, "  - name: g3\n")
				return before
			}))
			r.must(nil, "cluster", "start", r.cluster, "--on", "g1=n1,g2=n2")
			o := r.outside("n2", 3, r.app)
			r.app.Count = 2

			// Without a checkpoint nothing gets out, not even an answer.
			deadline := time.Now().Add(bootBudget)
			sending := func() bool {
				all, err := r.consoles().Read(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, console := range all {
					if labrun.LastCanary(console).Phase != "send" {
						return false
					}
				}
				return true
			}
			for !sending() {
				if time.Now().After(deadline) {
					t.Fatalf("guests do not send; outside:\n%s", o.report.bytes())
				}
				time.Sleep(300 * time.Millisecond)
				r.checkpoint("--mode", "live")
			}
			time.Sleep(time.Second)
			r.checkpoint("--mode", "live")
			time.Sleep(2 * time.Second) // of what they send now, all is undone
			r.must(nil, "rollback", r.cluster, "--on", "g1=n1,g2=n2")
			// The next agent opens the uplink again; what waited in the last one is lost.
			if policy == "allow" {
				if err := r.RenewAgent(t.Context(), "n1", "", r.cluster, r.app.Count); err != nil {
					t.Fatal(err)
				}
			}
			for {
				time.Sleep(500 * time.Millisecond)
				r.checkpoint("--mode", "live")
				got, complete := o.fromGuests(r)
				if !complete {
					if time.Now().After(deadline) {
						t.Fatalf("outside nothing is counted:\n%s", o.report.bytes())
					}
					continue
				}
				r.must(nil, "cluster", "show", r.cluster)
				t.Logf("%s: outside saw %+v", policy, got)
				switch {
				case got.Received == 0:
					t.Error("nothing got out")
				case policy == "allow":
					if got.Doubled == 0 {
						t.Error("nothing was seen twice: the trial proves nothing")
					}
				case !got.Clean():
					t.Error("want every datagram once, in its turn")
				}
				return
			}
		})
	}
}

// TestBypass_GuestsOnABridge has guests on a bridge of their nodes, which VXLAN joins.
// By itself a checkpoint is a barrier cut then, and says whose frames it does not have.
// Guests that run on lose nothing by it; put back, they may, but see nothing twice.
func TestBypass_GuestsOnABridge(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	r := newRig(t, 2, "--bridge", bridge)
	r.app.Work = guests.RunCanary
	r.app.Canary = guests.Canary{Rate: 100, SizeBytes: 200, Length: 12 * time.Second, Wires: guests.AllWires}
	r.start()
	onBridge := func(s string) string {
		return strings.Replace(s, "  - name: lan\n", "  - name: lan\n    bridge: "+bridge+"\n", 1)
	}
	r.must(nil, "cluster", "create", "-f", r.spec(onBridge))
	r.must(nil, "cluster", "start", r.cluster, "--on", "g1=n1,g2=n2")
	r.sending()
	cp := r.checkpoint("--mode", "live")
	if cp.Cut != "barrier" || len(cp.Bypassed) != 1 || cp.Bypassed[0] != "lan" || len(cp.OffFabric) != 2 || len(cp.Networks) != 0 {
		t.Errorf("%+v: want a barrier cut that has no frame of network lan", cp)
	}
	if totals := r.counted(); !totals.Clean() {
		t.Errorf("after a checkpoint: %+v, want nothing lost", totals)
	}
	r.must(nil, "rollback", r.cluster, "--on", "g1=n2,g2=n1")
	totals := r.counted()
	t.Logf("back at %s: %+v", cp.ID, totals)
	if totals.Doubled != 0 || totals.Reordered != 0 || totals.Corrupt != 0 || totals.Broken != 0 {
		t.Errorf("%+v, want nothing but losses", totals)
	}
	r.agentKeepsGuests()
	var shown struct {
		Guests []struct {
			NICs []struct {
				Bridge   string `json:"bridge"`
				Received uint64 `json:"frames_received"`
				Sent     uint64 `json:"frames_sent"`
			} `json:"nics"`
		} `json:"guests"`
	}
	r.must(&shown, "cluster", "show", r.cluster, "-o", "json")
	for _, g := range shown.Guests {
		if len(g.NICs) != 1 || g.NICs[0].Bridge != bridge || g.NICs[0].Received == 0 || g.NICs[0].Sent == 0 {
			t.Errorf("cards %+v: want one on the bridge that has carried frames", g.NICs)
		}
	}
}

// agentKeepsGuests kills the agent of n1: its guests run on, and the next agent finds
// them with cards that are not its own.
func (r *rig) agentKeepsGuests() {
	r.Helper()
	if err := r.RenewAgent(r.Context(), "n1", "", r.cluster, r.app.Count); err != nil {
		r.Error(err)
	}
	r.ticking(stepBudget)
}
