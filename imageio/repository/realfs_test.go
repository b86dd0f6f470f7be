package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/vfs/faultfs"
	"fermata/imageio/vfs/glustertest"
	"fermata/protocol/mustrun"
)

// mountFaulty mounts a directory through FUSE.
func mountFaulty(t testing.TB) (*faultfs.FS, string) {
	t.Helper()
	mustrun.Need(t, mustrun.FUSE)
	f, point := faultfs.Temp(t)
	return f, filepath.Join(point, "repo")
}

// realConfig is small, on a directory of the operating system.
func realConfig(dir string) Config {
	return Config{Dir: dir, RunBytes: 2 * object.PageBytes, PackBytes: 4 * object.PageBytes, Workers: 2}
}

// TestFaulty_EveryErrorEverywhere fails every operation of a checkpoint in turn, with
// every error that a parallel file system is known for. The checkpoint fails and
// says why, or is there; the one before is untouched, and the next one works.
func TestFaulty_EveryErrorEverywhere(t *testing.T) {
	f, dir := mountFaulty(t)
	ctx := t.Context()
	for i, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ESTALE} {
		if i > 0 && testing.Short() {
			break
		}
		t.Run(errno.Error(), func(t *testing.T) {
			r := mustCreate(t, realConfig(filepath.Join(filepath.Dir(dir), fmt.Sprint("repo-", int(errno)))))
			mustCheckpoint(t, r, 1, guestImages(1))
			epoch := uint64(2)
			for k := 0; ; k++ {
				n := 0
				f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
					if op == faultfs.Read {
						return faultfs.Fault{}
					}
					if n++; n == k+1 {
						return faultfs.Fault{Errno: errno, Part: 100} // of a write a part is done
					}
					return faultfs.Fault{}
				})
				err := checkpoint(ctx, r, epoch, guestImages(2))
				f.Rule(nil)
				if err != nil && !errors.Is(err, errno) {
					t.Fatalf("operation %d: %v does not say %v", k, err, errno)
				}
				wantRestore(t, r, 1, guestImages(1))
				outcome, oerr := r.Outcome(ctx, "web", epoch)
				if oerr != nil || err == nil && outcome != OutcomeCommitted {
					t.Fatalf("operation %d: outcome %s, %v; %v", k, outcome, oerr, err)
				}
				if outcome == OutcomeNone {
					if err := r.Abort(ctx, "web", epoch, errno.Error()); err != nil {
						t.Fatal(err)
					}
				}
				mustCheckpoint(t, r, epoch+1, guestImages(3))
				wantRestore(t, r, epoch+1, guestImages(3))
				// Forget all but the first, so that there is as much to do again.
				for _, e := range []uint64{epoch, epoch + 1} {
					if _, err := r.Delete(ctx, "web", e); err != nil && !errors.Is(err, ErrNotFound) {
						t.Fatal(err)
					}
				}
				epoch += 2
				if n <= k {
					if k < 10 {
						t.Fatalf("%d operations prove nothing", k)
					}
					return
				}
			}
		})
	}
}

// TestFaulty_ShortWritesAreFinished: write(2) may do less than it was asked.
func TestFaulty_ShortWritesAreFinished(t *testing.T) {
	f, dir := mountFaulty(t)
	r := mustCreate(t, realConfig(dir))
	f.Rule(func(op faultfs.Op, _ string) faultfs.Fault { return faultfs.Fault{Part: 1000} })
	mustCheckpoint(t, r, 1, guestImages(1))
	f.Rule(nil)
	wantRestore(t, mustOpen(t, realConfig(dir), 1), 1, guestImages(1))
}

// TestFaulty_HangsAndGoesOn: a mount that answers nothing holds up who asked it, and
// nobody else; what was asked is done when it answers.
func TestFaulty_HangsAndGoesOn(t *testing.T) {
	f, dir := mountFaulty(t)
	r := mustCreate(t, realConfig(dir))
	mustCheckpoint(t, r, 1, guestImages(1))
	goOn, hangs := make(chan struct{}), make(chan struct{})
	first := true
	f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Fsync && first {
			first = false
			close(hangs)
			return faultfs.Fault{Wait: goOn}
		}
		return faultfs.Fault{}
	})
	done := make(chan error, 1)
	go func() { done <- checkpoint(t.Context(), r, 2, guestImages(2)) }()
	select {
	case <-hangs:
	case err := <-done:
		t.Fatalf("nothing was synced: %v", err)
	}
	wantRestore(t, r, 1, guestImages(1))
	select {
	case err := <-done:
		t.Fatalf("it did not wait for its sync: %v", err)
	default:
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 2, guestImages(2))
}

// TestFaulty_ReadErrorsAreTold: a disk that cannot read is not damage of the bytes,
// and no wrong byte is given away.
func TestFaulty_ReadErrorsAreTold(t *testing.T) {
	f, dir := mountFaulty(t)
	cfg := realConfig(dir)
	cfg.Patience = -1 // else what passes is no error
	r := mustCreate(t, cfg)
	mustCheckpoint(t, r, 1, guestImages(1))
	for k := 0; ; k++ {
		n := 0
		f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
			if op != faultfs.Read {
				return faultfs.Fault{}
			}
			if n++; n == k+1 {
				return faultfs.Fault{Errno: syscall.EIO}
			}
			return faultfs.Fault{}
		})
		_, err := restore(t.Context(), r, 1)
		f.Rule(nil)
		if n <= k {
			break
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("read %d: %v", k, err)
		}
	}
	wantRestore(t, r, 1, guestImages(1))
}

// TestNodes_TwoWriteOnePrunes has two nodes take checkpoints of a cluster each, whose
// memory is partly the same, while a third deletes, sweeps and compacts all the time,
// on every file system of the machine. Whatever is committed can be restored, by a
// fourth.
func TestNodes_TwoWriteOnePrunes(t *testing.T) {
	t.Run("disk", func(t *testing.T) { twoWriteOnePrunes(t, filepath.Join(t.TempDir(), "repo"), 40, nothing) })
	t.Run("memory", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "fermata-repo-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		twoWriteOnePrunes(t, filepath.Join(dir, "repo"), 40, nothing)
	})
	t.Run("slow", func(t *testing.T) {
		f, dir := mountFaulty(t)
		mustCreate(t, realConfig(dir)) // its 256 directories at full speed
		f.Slow(200*time.Microsecond, 0)
		twoWriteOnePrunes(t, dir, 12, nothing)
	})
}

// TestNodes_GlusterFS does the same on a file system of several servers: with each file
// on one of three, and coded over all three while one of them is killed.
func TestNodes_GlusterFS(t *testing.T) {
	if testing.Short() {
		t.Skip("its directories take half a minute to make: not with -short")
	}
	mustrun.Need(t, mustrun.Gluster)
	for _, kind := range []glustertest.Kind{glustertest.Distribute, glustertest.Disperse} {
		t.Run(string(kind), func(t *testing.T) {
			// Not in a directory of the test's name: paths of sockets are short.
			dir, err := os.MkdirTemp("", "fermata-g")
			if err != nil {
				t.Fatal(err)
			}
			v, err := glustertest.Mount(dir, kind)
			if err != nil {
				t.Fatal(errors.Join(err, os.RemoveAll(dir)))
			}
			t.Cleanup(func() {
				if err := errors.Join(v.Close(), os.RemoveAll(dir)); err != nil {
					t.Error(err)
				}
			})
			repo := filepath.Join(v.Dir(), "repo")
			mustCreate(t, realConfig(repo))
			amid := func() error { return nil }
			if kind == glustertest.Disperse {
				amid = func() error { return v.KillBrick(1) }
			}
			twoWriteOnePrunes(t, repo, 5, amid)
		})
	}
}

func nothing() error { return nil }

// twoWriteOnePrunes calls amid once, in the middle of a checkpoint.
func twoWriteOnePrunes(t *testing.T, dir string, rounds uint64, amid func() error) {
	ctx := t.Context()
	if _, err := Create(ctx, realConfig(dir)); err != nil && !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	var committed, overtaken atomic.Int64
	node := func(ctx context.Context, cluster string, seed uint64) error {
		r, err := Open(ctx, realConfig(dir))
		if err != nil {
			return err
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		for epoch := uint64(1); epoch <= rounds; epoch++ {
			if err := r.Refresh(ctx); err != nil {
				return err
			}
			images := guestImages(rng.IntN(6))
			between := nothing
			if cluster == "one" && epoch == 2 {
				between = amid
			}
			switch err := checkpointOf(ctx, r, cluster, epoch, images, between); {
			case errors.Is(err, ErrPackMissing): // overtaken by the third node
				overtaken.Add(1)
				if err := r.Abort(ctx, cluster, epoch, "overtaken"); err != nil {
					return err
				}
				continue
			case err != nil:
				return fmt.Errorf("%s@%d: %w", cluster, epoch, err)
			}
			committed.Add(1)
			// The newest is never deleted, so it can be read whatever the third does.
			if err := sameGuests(ctx, r, cluster, epoch, images); err != nil {
				return fmt.Errorf("%s@%d: %w", cluster, epoch, err)
			}
		}
		return nil
	}
	g, gctx := errgroup.WithContext(ctx)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i, cluster := range []string{"one", "two"} {
		writers.Add(1)
		g.Go(func() error {
			defer writers.Done()
			return node(gctx, cluster, uint64(i))
		})
	}
	go func() { writers.Wait(); close(stop) }()
	prunes := 0
	g.Go(func() error {
		r, err := Open(gctx, realConfig(dir))
		if err != nil {
			return err
		}
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			plan, err := r.PlanPrune(gctx, PruneOptions{Retention: Retention{Last: 1}, CompactBelow: 0.9})
			if err == nil {
				_, err = r.Prune(gctx, plan)
			}
			if err != nil {
				return fmt.Errorf("prune: %w", err)
			}
			prunes++
		}
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d checkpoints, %d overtaken, %d prunes", committed.Load(), overtaken.Load(), prunes)
	if committed.Load() == 0 || prunes == 0 {
		t.Fatal("nothing was tried")
	}
	r := mustOpen(t, realConfig(dir), 9)
	if rep := mustCheck(t, r, CheckOptions{ReadData: true}); len(rep.Damage) != 0 || rep.Checkpoints < 2 {
		t.Fatalf("%+v", rep)
	}
}

// checkpointOf is checkpoint for any cluster, with something between its two guests.
func checkpointOf(ctx context.Context, r *Repository, cluster string, epoch uint64, images map[string][]byte, between func() error) error {
	w, err := r.NewWriter(WriterConfig{Cluster: cluster, Epoch: epoch, Node: cluster})
	if err != nil {
		return err
	}
	m := &manifest.Manifest{Cluster: cluster, Epoch: epoch, CreatedUnixNS: int64(epoch)}
	for _, name := range []string{"a", "b"} {
		ref, err := w.PutBytes(ctx, images[name])
		if err != nil {
			return errors.Join(err, w.Abort())
		}
		m.Guests = append(m.Guests, manifest.Guest{Name: name, Node: cluster, Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram0", ID: ref.ID, SizeBytes: uint64(ref.Size)},
		}})
		if name == "a" {
			if err := between(); err != nil {
				return errors.Join(err, w.Abort())
			}
		}
	}
	res, err := w.Finish(ctx)
	if err != nil {
		return err
	}
	m.Packs = res.Packs
	return r.Commit(ctx, m)
}

func sameGuests(ctx context.Context, r *Repository, cluster string, epoch uint64, images map[string][]byte) error {
	m, err := r.Manifest(ctx, cluster, epoch)
	if err != nil {
		return err
	}
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		return err
	}
	for _, g := range m.Guests {
		got, err := rd.ReadBytes(ctx, RefOf(g.Objects[0]), 1<<30)
		if err != nil {
			return err
		}
		if string(got) != string(images[g.Name]) {
			return fmt.Errorf("guest %s differs", g.Name)
		}
	}
	return nil
}
