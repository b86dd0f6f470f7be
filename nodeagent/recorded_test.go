package nodeagent

import (
	"io"
	"syscall"
	"testing"

	"fermata/experiments/guests"
	"fermata/imageio/repository"
	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
)

// TestAgent_RecordedFramesOutliveItBeforeTheRelease restarts an agent, then kills its
// data plane, between create-guests and release-guests of a restart. The frames that
// were in flight at the cut reach the guest all the same, once.
func TestAgent_RecordedFramesOutliveItBeforeTheRelease(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	n.cfg.DestroyOnExit = false
	r.stop("n1")
	r.start("n1")
	r.create(1, map[int]string{1: "n1"}, nil, nil)
	images, packs, _ := r.checkpoint(2)
	r.destroy()

	const count = 5
	object, more := r.putFrames(count)
	image := images[guests.Name(1)]
	image.Objects = append(image.Objects, object)
	stream, err := n.client.CreateGuests(t.Context(), &api.CreateGuestsRequest{
		Fence: r.fence, Cluster: "c", Epoch: 3, Packs: append(packs, more...), Guests: []*api.GuestSpec{r.spec(1)}, Images: []*api.GuestImage{image},
	})
	if err != nil {
		t.Fatal(err)
	}
	var injected uint64
	for err == nil {
		var u *api.CreateGuestsUpdate
		if u, err = stream.Recv(); err == nil {
			injected += u.FramesInjected
		}
	}
	if err != io.EOF || injected != count {
		t.Fatalf("%d frames injected (%v), want %d", injected, err, count)
	}

	r.stop("n1")
	n.cfg.DestroyOnExit = true // for the end of the test
	r.start("n1")
	if card := r.card("n1"); card.FramesHeld != count || card.FramesInjected != count {
		t.Errorf("after the agent's restart %d frames wait, %d were injected; want %d", card.FramesHeld, card.FramesInjected, count)
	}
	// Of a data plane that dies they are in a file beside the guest.
	first := n.agent.process.Incarnation()
	if err := syscall.Kill(n.agent.process.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.await("the frames in another data plane", stepBudget, func() bool {
		now := n.agent.process.Incarnation()
		return now != "" && now != first && r.card("n1").FramesHeld == count
	})
	if card := r.card("n1"); card.FramesInjected != count {
		t.Errorf("after the data plane's death %d frames were injected, want %d", card.FramesInjected, count)
	}
	if _, err := n.client.ReleaseGuests(t.Context(), &api.ReleaseGuestsRequest{Fence: r.fence, Cluster: "c"}); err != nil {
		t.Fatal(err)
	}
	r.await("the frames to reach the guest", stepBudget, func() bool {
		card := r.card("n1")
		return card.FramesHeld == 0 && card.FramesSent >= count
	})
	if card := r.card("n1"); card.FramesSent != count {
		t.Errorf("%d frames reached the guest, want %d", card.FramesSent, count)
	}
}

// putFrames stores the channel state of a card, with count frames that no guest expects.
func (r *rig) putFrames(count int) (*api.ImageObject, []string) {
	r.t.Helper()
	repo, err := repository.Open(r.t.Context(), repository.Config{Dir: r.repo})
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := repo.NewWriter(repository.WriterConfig{Cluster: "c", Epoch: 2, Node: "n1"})
	if err != nil {
		r.t.Fatal(err)
	}
	frames := make([][]byte, count)
	for i := range frames {
		frames[i] = make([]byte, 100)
	}
	ref, err := w.PutBytes(r.t.Context(), fabric.EncodeFrames(frames))
	if err != nil {
		r.t.Fatal(err)
	}
	result, err := w.Finish(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	object := objectOf(kindChannel, "net0", ref)
	object.Count = uint64(count)
	return object, result.Packs
}

// card is what a node says of the card of its only guest.
func (r *rig) card(node string) *api.NICStatus {
	r.t.Helper()
	info, err := r.nodes[node].client.Describe(r.t.Context(), &api.DescribeRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	if len(info.Guests) != 1 || len(info.Guests[0].Nics) != 1 {
		r.t.Fatalf("node %s has %v, want one guest with a card", node, info.Guests)
	}
	return info.Guests[0].Nics[0]
}
