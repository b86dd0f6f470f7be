package rounds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"fermata/coordinator/deploy"
	"fermata/coordinator/nodeconn"
	"fermata/coordinator/rounds"
	"fermata/protocol/api"
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
}

func (w *writer) PrepareRound(context.Context, *api.PrepareRoundRequest) (*api.PrepareRoundReply, error) {
	return &api.PrepareRoundReply{}, nil
}

func (w *writer) CutRound(context.Context, *api.CutRoundRequest) (*api.CutRoundReply, error) {
	return &api.CutRoundReply{}, nil
}

func (w *writer) PersistRound(_ *api.PersistRoundRequest, stream grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
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

// TestWriters_TakeTurns: of five nodes two write at a time, and one that waits longer
// than a node may be silent is not given up for it.
func TestWriters_TakeTurns(t *testing.T) {
	const nodes, writers = 5, 2
	dir, err := os.MkdirTemp("", "writers") // socket paths are short (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	begun, goOn := make(chan string, nodes), make(chan struct{}, nodes)
	var busy, most atomic.Int32
	job := rounds.Job{
		Round: round.ID{Cluster: "c", Epoch: 2}, Fence: &api.Fence{Token: 1, Store: 1},
		Options:    round.Options{PauseBudget: time.Second},
		CheckImage: func(*api.NodeImage) error { return nil },
		Ledger:     new(book), Progress: func(*api.Event) {},
	}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		socket := filepath.Join(dir, name)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		api.RegisterNodeServer(server, &writer{name: name, begun: begun, goOn: goOn, busy: &busy, most: &most})
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		defer func() {
			server.Stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		job.Members = append(job.Members, deploy.Node{Name: name, Address: "unix:" + socket})
	}
	pool := nodeconn.New(nil)
	defer func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	}()
	driver, err := rounds.New(rounds.Config{
		Nodes: pool, Prepare: 20 * time.Second, Cut: 20 * time.Second, Persist: silence, Finish: 20 * time.Second,
		Writers: writers, Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Wait()

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
