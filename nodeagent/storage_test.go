package nodeagent

import (
	"context"
	"sync"
	"testing"
	"time"

	"fermata/imageio/repository"
	"fermata/imageio/vfs"
	"fermata/protocol/api"
)

// hangingDisk is a file system of which every operation waits while it hangs.
type hangingDisk struct {
	vfs.OS
	mu    sync.Mutex
	gone  chan struct{} // guarded by mu; nil: it does not hang
	asked chan struct{} // a value for operations that wait
}

func (d *hangingDisk) hang() (heal func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	gone := make(chan struct{})
	d.gone = gone
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.gone = nil
		close(gone)
	})
}

func (d *hangingDisk) meet() {
	d.mu.Lock()
	gone := d.gone
	d.mu.Unlock()
	if gone == nil {
		return
	}
	select {
	case d.asked <- struct{}{}:
	default:
	}
	<-gone
}

func (d *hangingDisk) Create(name string) (vfs.File, error) { d.meet(); return d.OS.Create(name) }
func (d *hangingDisk) Open(name string) (vfs.File, error)   { d.meet(); return d.OS.Open(name) }
func (d *hangingDisk) List(name string) ([]string, error)   { d.meet(); return d.OS.List(name) }
func (d *hangingDisk) Stat(name string) (vfs.Info, error)   { d.meet(); return d.OS.Stat(name) }
func (d *hangingDisk) Remove(name string) error             { d.meet(); return d.OS.Remove(name) }
func (d *hangingDisk) Rename(oldName, newName string) error {
	d.meet()
	return d.OS.Rename(oldName, newName)
}
func (d *hangingDisk) Link(oldName, newName string) error {
	d.meet()
	return d.OS.Link(oldName, newName)
}
func (d *hangingDisk) SyncDir(name string) error { d.meet(); return d.OS.SyncDir(name) }
func (b *bench) hangingRepository() (disk *hangingDisk, _ error) {
	disk = &hangingDisk{asked: make(chan struct{}, 1)}
	cfg := b.agent.cfg.Repository
	cfg.FS = disk
	repo, err := repository.Open(b.t.Context(), cfg)
	if err == nil {
		b.agent.repo.set(repo)
	}
	return disk, err
}

// TestStorage_HangHoldsNoRound lets the repository hang while a node prepares and
// while it persists. The abort is answered, the next round works once the file
// system goes on, and while it does not the guests can be ended.
func TestStorage_HangHoldsNoRound(t *testing.T) {
	for _, ends := range []string{"finish", "destroy"} {
		for _, at := range []string{"prepare", "persist"} {
			t.Run(at+"/"+ends, func(t *testing.T) {
				b := newBench(t, 2)
				disk, err := b.hangingRepository()
				if err != nil {
					t.Fatal(err)
				}
				b.checkpoint(2)
				ended := make(chan error, 1)
				var heal func()
				if at == "prepare" {
					heal = disk.hang()
					go func() {
						_, err := b.agent.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: b.round(3), Nodes: []string{"n1"}, PauseBudgetMs: 1000})
						ended <- err
					}()
				} else {
					if err := b.cut(3, stepBudget); err != nil {
						t.Fatal(err)
					}
					heal = disk.hang()
					go func() {
						ended <- b.agent.PersistRound(t.Context(), &api.PersistRoundRequest{Round: b.round(3)}, func(*api.PersistRoundUpdate) error { return nil })
					}()
				}
				defer heal()
				<-disk.asked
				begun := time.Now()
				if ends == "finish" {
					b.finish(3, false)
					b.allRun()
					b.nothingCopied()
				} else if err := b.agent.DestroyGuests(t.Context(), &api.DestroyGuestsRequest{Fence: b.fence, Cluster: "c"}); err != nil {
					t.Errorf("destroy: %v", err)
				}
				if took := time.Since(begun); took > leaveBudget/2 {
					t.Errorf("took %s", took)
				}
				if err := <-ended; err == nil {
					t.Error("the call that met the hang succeeded")
				}
				heal()
				if ends == "finish" {
					b.checkpoint(4)
				}
			})
		}
	}
}

// TestStorage_HangHoldsNoTurn lets the repository hang while guests are restored:
// when the caller gives up, the cluster's turn is free.
func TestStorage_HangHoldsNoTurn(t *testing.T) {
	b := newBench(t, 1)
	disk, err := b.hangingRepository()
	if err != nil {
		t.Fatal(err)
	}
	image := b.checkpoint(2)
	heal := disk.hang()
	defer heal()
	ctx, cancel := context.WithCancel(t.Context())
	req := b.createRequest("d", 3, &api.GuestSpec{Name: "g1", MemoryBytes: 64 << 20})
	req.Images, req.Packs = image.Guests, image.Packs
	ended := make(chan error, 1)
	go func() { ended <- b.agent.CreateGuests(ctx, req, nil) }()
	<-disk.asked
	cancel()
	if err := <-ended; err == nil {
		t.Error("guests were restored from a repository that hangs")
	}
	if err := b.agent.DestroyGuests(t.Context(), &api.DestroyGuestsRequest{Fence: b.fence, Cluster: "d"}); err != nil {
		t.Errorf("destroy: %v", err)
	}
}
