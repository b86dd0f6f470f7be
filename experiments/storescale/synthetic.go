package main

import (
	"context"
	"encoding/binary"

	"math/rand/v2"
	"path/filepath"
	"runtime"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/repository"
	"fermata/imageio/vfs"
)

// synthetic is a repository that was made.
type synthetic struct {
	Pages int64 `json:"pages"`
	Packs int   `json:"packs"`
	Bytes int64 `json:"bytes"`
}

const (
	pagesAPack = 1 << 14 // 64 MiB
	pagesARun  = 64
	cluster    = "scale"
)

// synthesize makes a repository with two checkpoints of one image each. Of every two
// leaves of the first, the second has one, and a new one in place of the other; so it
// has two thirds of all pages, and half of what the first has is needed by nobody once
// that is deleted.
func synthesize(ctx context.Context, dir string, pages int64) (synthetic, error) {
	repo, err := repository.Create(ctx, repository.Config{Dir: dir})
	if err != nil {
		return synthetic{}, err
	}
	s := &synthesizer{dir: dir, repo: repo, rng: rand.NewChaCha8([32]byte{1})}
	encoder, err := pack.NewEncoder(pack.S2, 1)
	if err != nil {
		return synthetic{}, err
	}
	zeros := make([]byte, pagesARun*object.PageBytes)
	if s.pageRun, err = encoder.Encode(make([]byte, pack.MaxStoredLen(len(zeros))), zeros); err != nil {
		return synthetic{}, err
	}
	if s.nodes, err = pack.NewEncoder(pack.Raw, 1); err != nil {
		return synthetic{}, err
	}
	leaves := int(pages / object.Fanout * 2 / 3)
	first := make([]object.ID, leaves)
	for i := range first {
		if first[i], err = s.leaf(1); err != nil {
			return synthetic{}, err
		}
	}
	if err := s.commit(ctx, 1, first); err != nil {
		return synthetic{}, err
	}
	second := append([]object.ID(nil), first...)
	for i := 0; i < len(second); i += 2 {
		if second[i], err = s.leaf(2); err != nil {
			return synthetic{}, err
		}
	}
	if err := s.commit(ctx, 2, second); err != nil {
		return synthetic{}, err
	}
	return s.made, nil
}

type synthesizer struct {
	dir     string
	repo    *repository.Repository
	rng     *rand.ChaCha8
	pageRun pack.Encoded // what all runs of pages are: the pages are not there
	nodes   *pack.Encoder
	open    *pack.Writer
	inOpen  int      // pages
	packs   []string // of all checkpoints
	made    synthetic
}

// leaf makes a leaf of pages that are new.
func (s *synthesizer) leaf(epoch uint64) (object.ID, error) {
	ids := make([]object.ID, object.Fanout)
	for i := range ids {
		for w := 0; w < len(ids[i]); w += 8 {
			binary.LittleEndian.PutUint64(ids[i][w:], s.rng.Uint64())
		}
	}
	if err := s.writer(epoch); err != nil {
		return object.ID{}, err
	}
	for i := 0; i < len(ids); i += pagesARun {
		objects := make([]pack.Object, pagesARun)
		for n := range objects {
			objects[n] = pack.Object{ID: ids[i+n], Kind: object.KindPage, Length: object.PageBytes}
		}
		if err := s.open.Append(s.pageRun, objects); err != nil {
			return object.ID{}, err
		}
	}
	s.made.Pages += object.Fanout
	s.inOpen += object.Fanout
	id, err := s.node(object.KindLeaf, object.AppendNode(nil, object.KindLeaf, ids))
	if err == nil && s.inOpen >= pagesAPack {
		err = s.finish()
	}
	return id, err
}

func (s *synthesizer) node(kind object.Kind, data []byte) (object.ID, error) {
	id := object.Sum(data)
	run, err := s.nodes.Encode(nil, data)
	if err != nil {
		return id, err
	}
	return id, s.open.Append(run, []pack.Object{{ID: id, Kind: kind, Length: uint32(len(data))}})
}

// writer makes sure that a pack is open.
func (s *synthesizer) writer(epoch uint64) error {
	if s.open != nil {
		return nil
	}
	id, err := pack.NewID(s.rng)
	if err != nil {
		return err
	}
	final := filepath.Join(s.dir, "packs", id.String()[:2], id.String()+".pack")
	h := pack.Header{ID: id, Repository: s.repo.ID(), Cluster: cluster, Epoch: epoch, Node: "n1"}
	s.open, err = pack.Create(noSync{vfs.OS{}}, final+".tmp", final, h, pack.Options{})
	return err
}

func (s *synthesizer) finish() error {
	if s.open == nil {
		return nil
	}
	size, err := s.open.Finalise()
	if err != nil {
		return err
	}
	s.packs = append(s.packs, s.open.ID().String())
	s.made.Packs++
	s.made.Bytes += size
	s.open, s.inOpen = nil, 0
	return nil
}

// commit makes a checkpoint of an image with these leaves.
func (s *synthesizer) commit(ctx context.Context, epoch uint64, leaves []object.ID) error {
	if err := s.writer(epoch); err != nil {
		return err
	}
	root := object.Root{Size: int64(len(leaves)) * object.LeafBytes}
	for i := 0; i < len(leaves); i += object.Fanout {
		id, err := s.node(object.KindBranch, object.AppendNode(nil, object.KindBranch, leaves[i:min(i+object.Fanout, len(leaves))]))
		if err != nil {
			return err
		}
		root.Branches = append(root.Branches, id)
	}
	id, err := s.node(object.KindRoot, object.AppendRoot(nil, root))
	if err != nil {
		return err
	}
	if err := s.finish(); err != nil {
		return err
	}
	return s.repo.Commit(ctx, &manifest.Manifest{Cluster: cluster, Epoch: epoch, CreatedUnixNS: int64(epoch), Packs: s.packs,
		Guests: []manifest.Guest{{Name: "g1", Node: "n1", Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram", ID: id, SizeBytes: uint64(root.Size)}}}}})
}

// noSync is a file system that need not survive a crash.
type noSync struct{ vfs.FS }

func (n noSync) Create(name string) (vfs.File, error) {
	f, err := n.FS.Create(name)
	return noSyncFile{f}, err
}

func (noSync) SyncDir(string) error { return nil }

type noSyncFile struct{ vfs.File }

func (noSyncFile) Sync() error { return nil }

// heap is what is in use.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func keepAlive(r *repository.Repository) { runtime.KeepAlive(r) }
