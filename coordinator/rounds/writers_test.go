package rounds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"fermata/coordinator/deploy"
	"fermata/coordinator/nodeconn"
	"fermata/coordinator/rounds"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/round"
)

// silence is how long a node that writes may say nothing.
const silence = 300 * time.Millisecond

// writer is a node that agrees to everything, and writes when it is let.
type writer struct {
	api.UnimplementedNodeServer
	name  string
	begun chan string   // gets the name of each that writes
	goOn  chan struct{} // a value lets one of them end
	busy  *atomic.Int32
	most  *atomic.Int32
	lost  bool // it cannot be reached any more when it is to write
}

func (w *writer) PrepareRound(context.Context, *api.PrepareRoundRequest) (*api.PrepareRoundReply, error) {
	return &api.PrepareRoundReply{}, nil
}

func (w *writer) CutRound(context.Context, *api.CutRoundRequest) (*api.CutRoundReply, error) {
	return &api.CutRoundReply{}, nil
}

func (w *writer) PersistRound(_ *api.PersistRoundRequest, stream grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
	if w.lost {
		return fault.New(fault.Unavailable, "connection lost")
	}
	busy := w.busy.Add(1)
	defer w.busy.Add(-1)
	for most := w.most.Load(); busy > most && !w.most.CompareAndSwap(most, busy); most = w.most.Load() {
	}
	w.begun <- w.name
	progress := time.NewTicker(silence / 10)
	defer progress.Stop()
	for {
		select {
		case <-w.goOn:
			return stream.Send(&api.PersistRoundUpdate{Image: &api.NodeImage{Node: w.name}})
		case <-progress.C:
			if err := stream.Send(&api.PersistRoundUpdate{}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (w *writer) FinishRound(context.Context, *api.FinishRoundRequest) (*api.FinishRoundReply, error) {
	return &api.FinishRoundReply{}, nil
}

// judgeAll commits whatever it is given.
type judgeAll struct{ images atomic.Int32 }

func (j *judgeAll) Commit(_ context.Context, e rounds.Evidence) (round.Outcome, error) {
	j.images.Store(int32(len(e.Images)))
	return round.Committed, nil
}

func (j *judgeAll) Abort(context.Context, string) (round.Outcome, error) { return round.Aborted, nil }

// serveWriter serves a node and returns how it is reached.
func serveWriter(t *testing.T, w *writer) deploy.Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "writer") // socket paths are short (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(faultgrpc.ServerOptions()...)
	api.RegisterNodeServer(server, w)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(<-served, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return deploy.Node{Name: w.name, Address: "unix:" + socket}
}

// writersJob is a round of these nodes, without a judge.
func writersJob(nodes ...deploy.Node) rounds.Job {
	return rounds.Job{
		Round: round.ID{Cluster: "c", Epoch: 2}, Fence: &api.Fence{Token: 1, Store: 1}, Members: nodes,
		Options:    round.Options{PauseBudget: time.Second},
		CheckImage: func(*api.NodeImage) error { return nil },
		Ledger:     new(book), Progress: func(*api.Event) {},
	}
}

// writersDriver lets so many nodes write at a time.
func writersDriver(t *testing.T, writers int) *rounds.Driver {
	t.Helper()
	pool := nodeconn.New(nil)
	driver, err := rounds.New(rounds.Config{
		Nodes: pool, Prepare: 20 * time.Second, Cut: 20 * time.Second, Persist: silence, Finish: 20 * time.Second,
		Writers: writers, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		driver.Wait()
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	return driver
}

// TestWriters_OneThatIsLostIsGivenUp: attempts to reach a node again are no sign of
// life, with turns and without.
func TestWriters_OneThatIsLostIsGivenUp(t *testing.T) {
	for _, writers := range []int{0, 1} {
		t.Run(fmt.Sprint(writers), func(t *testing.T) {
			job := writersJob(serveWriter(t, &writer{name: "n1", lost: true}))
			job.Judge = &judgeAll{}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := writersDriver(t, writers).Run(t.Context(), ctx, job)
			if fault.ClassOf(err) != fault.Deadline || !strings.Contains(err.Error(), "no progress") {
				t.Errorf("Run = %v, want that it has made no progress", err)
			}
		})
	}
}

// TestWriters_TakeTurns: of five nodes two write at a time, and one that waits longer
// than a node may be silent is not given up for it.
func TestWriters_TakeTurns(t *testing.T) {
	const nodes, writers = 5, 2
	begun, goOn := make(chan string, nodes), make(chan struct{}, nodes)
	var busy, most atomic.Int32
	var members []deploy.Node
	for i := range nodes {
		members = append(members, serveWriter(t, &writer{name: fmt.Sprintf("n%d", i+1), begun: begun, goOn: goOn, busy: &busy, most: &most}))
	}
	job, driver := writersJob(members...), writersDriver(t, writers)

	run := func(ctx context.Context) (*judgeAll, chan error) {
		judge, result := &judgeAll{}, make(chan error, 1)
		job := job
		job.Judge = judge
		go func() { result <- driver.Run(ctx, ctx, job) }()
		return judge, result
	}
	judge, result := run(t.Context())
	begins := func() {
		t.Helper()
		select {
		case <-begun:
		case err := <-result:
			t.Fatalf("the round has ended: %v", err)
		}
	}
	for range writers {
		begins()
	}
	for range nodes - writers {
		time.Sleep(silence / 2) // the work: the last waits for longer than silence
		goOn <- struct{}{}
		begins()
	}
	for range writers {
		goOn <- struct{}{}
	}
	if err := <-result; err != nil || judge.images.Load() != nodes {
		t.Fatalf("%d images, %v", judge.images.Load(), err)
	}
	if most.Load() != writers {
		t.Errorf("%d wrote at a time", most.Load())
	}

	// A round that is given up gives its turns back.
	ctx, cancel := context.WithCancel(t.Context())
	_, result = run(ctx)
	begins()
	begins()
	cancel()
	if err := <-result; err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a round that was given up: %v", err)
	}
	judge, result = run(t.Context())
	for range nodes {
		begins()
		goOn <- struct{}{}
	}
	if err := <-result; err != nil || judge.images.Load() != nodes {
		t.Fatalf("after it: %d images, %v", judge.images.Load(), err)
	}
}
