package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"fermata/imageio/extent"
	"fermata/imageio/object"
)

// sourceFunc is a source that tells what is read.
type sourceFunc func(p []byte, off int64) (int, error)

func (f sourceFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestPut_UrgentLeavesFirst scripts what somebody waits for, by how many leaves
// were begun before.
func TestPut_UrgentLeavesFirst(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1))) // with one worker
	const leaves = 8
	g := &guestMemory{b: make([]byte, leaves*object.LeafBytes)}
	g.generation(t, r, 1)
	for _, leaf := range []int64{0, 1, 2, 4, 5, 6, 7} { // leaf 3 did not change
		g.written.Add(extent.Extent{Off: leaf * object.LeafBytes, Len: 1})
	}
	script := []int64{
		6*object.LeafBytes + 5, // waits
		6 * object.LeafBytes,   // was begun
		3 * object.LeafBytes,   // need not be read
		5*object.LeafBytes - 1, // waits
		-1,                     // none
		1 << 50,                // outside
		0,                      // was begun
	}
	var order []int64
	src := sourceFunc(func(p []byte, off int64) (int, error) {
		order = append(order, off/object.LeafBytes)
		return copy(p, g.b[off:]), nil
	})
	opt := g.options()
	asked := 0
	opt.Urgent = func() (int64, bool) {
		off := script[asked]
		asked++
		return off, off >= 0
	}
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.PutImage(ctx, src, int64(len(g.b)), opt); err != nil {
		t.Fatal(err)
	}
	if want := []int64{6, 0, 1, 4, 2, 5, 7}; !slices.Equal(order, want) || asked != len(script) {
		t.Fatalf("read leaves %v, want %v; asked %d times", order, want, asked)
	}
}

// TestPut_SourceFailsWhileOthersRead: the error of one read comes out, wrapped,
// after the reads that have begun, and the Writer and the base are as before.
func TestPut_SourceFailsWhileOthersRead(t *testing.T) {
	ctx := t.Context()
	cfg := bigPacks(newCrashFS(t, 1))
	cfg.Workers = 3
	r := mustCreate(t, cfg)
	g := firstGeneration(t, r)
	g.written.Add(extent.Extent{Len: int64(len(g.b))})
	g.b[0]++

	errGone := errors.New("guest is gone")
	failed := make(chan struct{})
	ended := false
	src := sourceFunc(func(p []byte, off int64) (int, error) {
		switch off {
		case 0:
			<-failed // reads on when the other has failed
			ended = true
		case object.LeafBytes:
			defer close(failed)
			return 0, errGone
		}
		return copy(p, g.b[off:]), nil
	})
	m, images, err := round(ctx, r, 2, func(w *Writer) (*Image, error) {
		img, err := w.PutImage(ctx, src, int64(len(g.b)), g.options())
		if !errors.Is(err, errGone) || img != nil {
			t.Errorf("%v, %v", img, err)
		}
		if !ended {
			t.Error("returned during a read")
		}
		return g.put(ctx, g.options())(w)
	})
	if err != nil {
		t.Fatal(err)
	}
	if images[0].Ref != refByHand(g.b) {
		t.Fatal("another image")
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
}

// TestPut_ContextEndsDuringRead: the same for a context that ends.
func TestPut_ContextEndsDuringRead(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, bigPacks(newCrashFS(t, 1)))
	g := &guestMemory{b: image(1, 2*object.LeafBytes)}
	errOverdue := errors.New("round is overdue")
	m, _, err := round(ctx, r, 1, func(w *Writer) (*Image, error) {
		ending, end := context.WithCancelCause(ctx)
		reads := 0
		src := sourceFunc(func(p []byte, off int64) (int, error) {
			reads++
			end(errOverdue)
			return copy(p, g.b[off:]), nil
		})
		if _, err := w.PutImage(ending, src, int64(len(g.b)), PutOptions{}); !errors.Is(err, errOverdue) {
			t.Errorf("ended: %v", err)
		}
		if reads != 1 {
			t.Errorf("%d reads, want no more after the end", reads)
		}
		return w.PutImage(ctx, bytes.NewReader(g.b), int64(len(g.b)), PutOptions{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 1, map[string][]byte{"a": g.b})
}

// TestPut_ReadsInTurns: every leaf that is read is read in a turn of its own, and an
// error of a turn is the image's.
func TestPut_ReadsInTurns(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1))) // with one worker
	g := firstGeneration(t, r)                        // of three leaves
	g.written.Add(extent.Extent{Len: 1})
	g.written.Add(extent.Extent{Off: 2 * object.LeafBytes, Len: 1}) // leaf 1 did not change
	inTurn, turns := false, 0
	src := sourceFunc(func(p []byte, off int64) (int, error) {
		if !inTurn {
			t.Errorf("read at %d outside of a turn", off)
		}
		return copy(p, g.b[off:]), nil
	})
	opt := g.options()
	opt.Turn = func(work func() error) error {
		inTurn, turns = true, turns+1
		defer func() { inTurn = false }()
		return work()
	}
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	img, err := w.PutImage(ctx, src, int64(len(g.b)), opt)
	if err != nil {
		t.Fatal(err)
	}
	if turns != 2 || img.Ref != refByHand(g.b) {
		t.Errorf("%d turns for 2 leaves that changed, image %v, want %v", turns, img.Ref, refByHand(g.b))
	}
	refused := errors.New("no turn")
	opt.Turn = func(func() error) error { return refused }
	if _, err := w.PutImage(ctx, src, int64(len(g.b)), opt); !errors.Is(err, refused) {
		t.Errorf("error = %v, want that of the turn", err)
	}
}
