package trials

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/imageio/manifest"
	"fermata/protocol/guestport"
)

// secretWords counts the words of the guests' secret in the images of a checkpoint.
func (r *rig) secretWords(checkpointID string) map[string]int {
	r.Helper()
	words := map[uint64]bool{}
	for i := range uint64(r.app.Secret.Pages * 512) {
		words[guests.SecretWord(i)] = true
	}
	found := map[string]int{}
	r.eachImage(checkpointID, func(guest string, _ manifest.Kind, data []byte) {
		for ; len(data) >= 8; data = data[8:] {
			if words[binary.LittleEndian.Uint64(data)] {
				found[guest]++
			}
		}
	})
	return found
}

// registers is how many words of a secret a program may have in its processor's
// registers, or its kernel on the stack, while it looks at them.
const registers = 16

// TestConfidential_IsInNoCheckpoint has two guests that hold the same secret. The
// first has told so with fermata-guest, the other shows that the search finds it.
func TestConfidential_IsInNoCheckpoint(t *testing.T) {
	r := newRig(t, 2)
	r.app.Work = guests.RunSecret
	r.app.Secret = guests.Secret{Pages: 8, Told: true}
	r.extra = "  guest_tool: true\n"
	r.start()
	told, silent := guests.Name(1), guests.Name(2)
	r.must(nil, "cluster", "create", "-f", r.spec(func(s string) string {
		at := strings.LastIndex(s, "fermata.secret=8,1")
		return s[:at] + "fermata.secret=8,0" + s[at+len("fermata.secret=8,0"):]
	}))
	r.must(nil, "cluster", "start", r.cluster)
	// await waits until each guest has said a line for which is holds.
	await := func(what string, is func(guest string, line any) bool) {
		t.Helper()
		err := r.consoles().Await(t.Context(), bootBudget, what, func(all map[string][]byte) (bool, error) {
			for name, console := range all {
				said := false
				labrun.Each(console, func(l guests.Line) { said = said || is(name, l.Body) })
				if !said {
					return false, nil
				}
			}
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	await("the secrets", func(guest string, line any) bool {
		s, ok := line.(guests.SecretStart)
		if ok && (s.Status == 0) != (guest == told) {
			t.Fatalf("guest %s: fermata-guest ended with %d", guest, s.Status)
		}
		return ok
	})
	var last checkpoint
	for _, mode := range []string{"live", "live", "stop"} {
		last = r.checkpoint("--mode", mode)
		if found := r.secretWords(last.ID); found[told] > registers || found[silent] < r.app.Secret.Pages*512 {
			t.Errorf("%s (%s): words of the secret found: %v", last.ID, mode, found)
		}
	}
	r.must(nil, "rollback", r.cluster, "--from", last.ID)
	r.ticking(stepBudget)
	// What was hidden is zeros, and the guest is told so; all other memory is as it was.
	await("word of the restart", func(guest string, line any) bool {
		switch l := line.(type) {
		case guests.SecretState:
			if guest != told || l.State != "zero" {
				t.Fatalf("guest %s: the secret is %s", guest, l.State)
			}
		case guests.Restarted:
			var reply guestport.Reply
			if err := json.Unmarshal([]byte(l.Told), &reply); err != nil {
				t.Fatal(err)
			}
			var bytes uint64
			for _, z := range reply.Zeroed {
				bytes += z.Bytes
			}
			if reply.Life < 2 || bytes != uint64(r.app.Secret.Pages)*guestport.PageBytes || len(reply.Ranges) != len(reply.Zeroed) {
				t.Fatalf("told of the restart: %s", l.Told)
			}
			return true
		}
		return guest == silent
	})
	again := r.checkpoint()
	if found := r.secretWords(again.ID); found[told] > registers || found[silent] < r.app.Secret.Pages*512 {
		t.Errorf("after a restart: words of the secret found: %v", found)
	}
}
