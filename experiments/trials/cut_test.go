package trials

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
	"fermata/protocol/failpoint"
	"fermata/protocol/mustrun"
)

// late is how much later than the others one node cuts its guest.
const late = 2 * time.Second

// TestCut_OneNodeIsLate cuts guests that send each other numbered datagrams all the
// time, one of them two seconds after the others. What the others send it meanwhile
// is from behind the cut: if any of it got into its image, a rollback would have it
// twice. What it sends them meanwhile is of before: a rollback without the recorded
// frames loses it, which is the control. And the checkpoint itself is searched for every
// datagram that was on the wire. No guest stands still for the late one,
// except in a barrier cut.
func TestCut_OneNodeIsLate(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	r := newRig(t, 3)
	r.Fermata = fermataBinary(t, "failpoints")
	r.app.Count, r.app.Work = 3, guests.RunCanary
	r.app.Canary = guests.Canary{Rate: 100, SizeBytes: 200, Length: 30 * time.Second, Wires: guests.AllWires}
	r.start()
	r.must(nil, "cluster", "create", "-f", r.spec(nil))
	r.must(nil, "cluster", "start", r.cluster)
	// An agent that is killed loses frames: now, while guests boot, they do not count.
	r.arm("n2", string(failpoint.AgentBeforeCut)+"=delay("+late.String()+")")
	r.sending()

	traced := r.trace(8 * time.Second)
	whole := r.checkpoint("--mode", "live", "--cut", "coloured")
	if whole.SkewMS < result.Milliseconds(late)*9/10 || whole.MaxPauseMS > result.Milliseconds(late)/2 || whole.FramesRecorded == 0 || whole.Cut != "coloured" {
		t.Errorf("%+v: want a coloured cut that is skewed by %s, where no guest stood still for it, and frames recorded", whole, late)
	}
	r.searchOrphans(whole.ID, traced(whole.ID))
	holey := r.checkpoint("--mode", "live", "--cut", "coloured", "--discard-channels")
	if holey.FramesDiscarded == 0 {
		t.Errorf("%+v: want frames left out", holey)
	}
	still := r.checkpoint("--mode", "live", "--cut", "barrier")
	if still.MaxPauseMS < result.Milliseconds(late)*9/10 || still.SkewMS < result.Milliseconds(late)*9/10 || still.Cut != "barrier" {
		t.Errorf("%+v: want a barrier at which the first waited %s for the last", still, late)
	}
	if totals := r.counted(); !totals.Clean() {
		t.Errorf("three checkpoints: %+v, want nothing lost, doubled or reordered", totals)
	}
	for _, back := range []struct {
		to    checkpoint
		holes bool
	}{{holey, true}, {whole, false}, {still, false}} {
		r.must(nil, "rollback", r.cluster, "--from", back.to.ID)
		totals := r.counted()
		t.Logf("back at %s (%s cut, %d frames recorded, %d left out): %+v", back.to.ID, back.to.Cut, back.to.FramesRecorded, back.to.FramesDiscarded, totals)
		if back.holes {
			if totals.Lost == 0 || totals.Doubled != 0 || totals.Corrupt != 0 {
				t.Errorf("without channel state %+v, want frames lost, and none twice", totals)
			}
		} else if !totals.Clean() {
			t.Errorf("%+v, want nothing lost, doubled or reordered", totals)
		}
	}
}

// tracedFrame is a frame that a guest has sent.
type tracedFrame struct {
	guest  string
	behind bool // its sender's point on the cut
	data   []byte
}

// trace writes a trace of the cluster's network for some time. The returned function
// waits for its end, checks that the checkpoint's cut is in it: one point of each
// guest, with the older frames of the guest before it and the newer ones behind; and
// returns the frames.
func (r *rig) trace(length time.Duration) (check func(checkpointID string) []tracedFrame) {
	r.Helper()
	path := filepath.Join(r.Dir, "trace.pcapng")
	ended := make(chan error, 1)
	go func() {
		ended <- r.Command(r.Context(), r.Output(), nil, "trace", r.cluster, "-w", path, "--for", length.String())
	}()
	return func(checkpointID string) (frames []tracedFrame) {
		r.Helper()
		if err := <-ended; err != nil {
			r.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			r.Fatal(err)
		}
		defer f.Close()
		reader, err := pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{})
		if err != nil {
			r.Fatal(err)
		}
		_, epoch, _ := strings.Cut(checkpointID, "@")
		points, older, newer := map[string]int{}, map[string]int{}, map[string]int{}
		for {
			data, info, opts, err := reader.ReadPacketDataWithOptions()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				r.Fatal(err)
			}
			card, err := reader.Interface(info.InterfaceIndex)
			if err != nil {
				r.Fatal(err)
			}
			guest, _, _ := strings.Cut(card.Name, "/")
			behind := points[card.Name] > 0
			switch comment := strings.Join(opts.Comments, " "); {
			case strings.HasPrefix(comment, "cut "+epoch+":"):
				points[card.Name]++
				continue
			case comment == "epoch "+epoch:
				newer[card.Name]++
				if !behind {
					r.Errorf("%s has sent a frame of epoch %s before its point", card.Name, epoch)
				}
			default:
				older[card.Name]++
				if behind {
					r.Errorf("%s has sent a frame of %s behind its point", card.Name, comment)
				}
			}
			frames = append(frames, tracedFrame{guest: guest, behind: behind, data: data})
		}
		r.Logf("trace: points %v, older frames %v, newer frames %v", points, older, newer)
		for i := 1; i <= r.app.Count; i++ {
			card := guests.Name(i) + "/eth0"
			if points[card] != 1 || older[card] == 0 || newer[card] == 0 {
				r.Errorf("trace of %s: %d points, %d older and %d newer frames", card, points[card], older[card], newer[card])
			}
		}
		return frames
	}
}

// sending waits until every guest sends to all others.
func (r *rig) sending() {
	r.Helper()
	err := r.consoles().Await(r.Context(), bootBudget, "canaries of all guests to send", func(all map[string][]byte) (bool, error) {
		sending := 0
		for _, console := range all {
			if last := labrun.LastCanary(console); last.Phase == "send" && last.Received > 0 {
				sending++
			}
		}
		return sending == r.app.Count, nil
	})
	if err != nil {
		r.Fatal(err)
	}
}

// counted waits until all canaries have ended, and adds them up.
func (r *rig) counted() guests.Totals {
	r.Helper()
	var s guests.Summary
	err := r.consoles().Await(r.Context(), bootBudget, "canaries of all guests to end", func(all map[string][]byte) (done bool, err error) {
		s, err = labrun.Summarise(all)
		return s.CanaryComplete, err
	})
	if err != nil {
		r.Fatal(err)
	}
	return s.Totals
}
