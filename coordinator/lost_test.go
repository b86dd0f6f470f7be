package coordinator_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/coordinator"
	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// mortal runs an agent that the test can end.
func (l *lab) mortal(name string) (end func()) {
	l.t.Helper()
	a, err := coordinatortest.New(l.t.Context(), coordinatortest.Config{
		Name: name, Repository: l.repoConfig(), MemoryBytes: 64 * mib,
		Coordinators: []string{l.address(0)}, Socket: l.dir + "/" + name + ".sock",
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return run(l.t, "agent "+name, a.Run)
}

// logBook keeps a log.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) says(words ...string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.text.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

// TestLost_NodeFailsACheckpointSoon ends an agent. A checkpoint fails soon and says why,
// and the operator hears of it meanwhile; the coordinator logs that the node is lost,
// and that it is back.
func TestLost_NodeFailsACheckpointSoon(t *testing.T) {
	l := newLab(t, "n1")
	l.leaseTTL = 2 * time.Second
	end := l.mortal("n2")
	book := &logBook{}
	co, err := coordinator.New(coordinator.Config{
		Listen: []string{l.address(0)}, Plaintext: true,
		State:      &coordinator.State{Store: l.store, Elector: coordinatortest.Candidate{Election: l.election, Address: l.address(0)}},
		Repository: l.repoConfig(), NodeLeaseTTL: l.leaseTTL, ShutdownGrace: time.Second,
		Logger: hclog.New(&hclog.LoggerOptions{Output: book}),
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "coordinator", co.Run)
	l.await("coordinator listens", func() bool { return len(co.Addresses()) == 1 })
	c := dial(t, l.address(0))
	c.lab = l
	l.await("two nodes", func() bool { return c.alive() == 2 })
	c.running("web", "a", "b")
	c.mustCheckpoint("web")
	end()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := c.TakeCheckpoint(ctx, &api.CheckpointRequest{Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	var heard []string
	for {
		e, err := stream.Recv()
		if err != nil {
			wantFault(t, err, fault.Unavailable, "n2")
			break
		}
		heard = append(heard, e.GetNode()+": "+e.GetText())
	}
	// The lease, and what it takes to notice its end.
	if took := time.Since(begun); took > l.leaseTTL+3*time.Second {
		t.Errorf("the checkpoint failed after %s; heard %q", took, heard)
	}
	l.await("the loss is logged", func() bool { return book.says("[WARN]", "node is lost", "n2") })
	_, err = c.checkpoint("web")
	wantFault(t, err, fault.Unavailable, "n2", "has not been heard of since")
	if l.runningGuests("web") != 1 {
		t.Error("the guest of n1 does not run")
	}
	defer l.mortal("n2")()
	l.await("the return is logged", func() bool { return book.says("[INFO]", "node is back", "n2") })
}

// TestLost_OperatorHearsForWhomARoundWaits lets a node hang: progress names it.
func TestLost_OperatorHearsForWhomARoundWaits(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b")
	arrived, release := make(chan struct{}), make(chan struct{})
	l.agents["n2"].Inject(coordinatortest.Prepare, coordinatortest.Park(arrived, release))
	stream, err := c.TakeCheckpoint(t.Context(), &api.CheckpointRequest{Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.GetNode() == "n2" && strings.Contains(e.GetText(), "waiting for an answer") {
			break
		}
	}
	close(release)
	if _, err := follow(stream, nil); err != nil {
		t.Error(err)
	}
}
