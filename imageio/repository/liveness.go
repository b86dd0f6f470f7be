package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"sync"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// packUse is what of a pack checkpoints need.
type packUse struct {
	round     epochKey
	size      int64
	rawBytes  uint64   // of all objects
	liveBytes uint64   // of those that are needed
	live      []uint64 // a bit an object, lowest first
}

// share is the part of a pack that is needed, 0 to 1.
func (u *packUse) share() float64 {
	if u.rawBytes == 0 {
		return 0
	}
	return float64(u.liveBytes) / float64(u.rawBytes)
}

func (u *packUse) isLive(object int) bool { return u.live[object/64]&(1<<(object%64)) != 0 }

// marking finds out which objects of which packs checkpoints need. It goes over
// trees and trailers once for each shard of the objects, so that its memory is a
// table of the needed objects of one shard, a bit for each object of the packs,
// and an index of the trees' nodes, which are 1/512 of the pages.
type marking struct {
	r      *Repository
	uses   map[pack.ID]*packUse
	nodes  *Reader // of nodes only
	shards int     // a power of two
	passes func(done, total int)
}

// neededBytes is what the table takes for an object: eight bytes, and half of the
// places are free at worst.
const neededBytes = 32

// maxShards is how many the first byte of an object's id can tell apart.
const maxShards = 256

// mark computes the uses of packs by the manifests that each yields. It fails if a
// tree cannot be followed: then what is needed is not known.
func (r *Repository) mark(ctx context.Context, packs []pack.ID, memoryBytes int64,
	each func(func(*manifest.Manifest) error) error, passes func(done, total int),
) (map[pack.ID]*packUse, error) {
	k := &marking{r: r, uses: map[pack.ID]*packUse{}, passes: passes}
	var mu sync.Mutex
	objects := uint64(0)
	err := r.readTrailers(ctx, packs, func(_ int, id pack.ID, t *pack.Trailer, err error) error {
		if err != nil {
			return err
		}
		info, err := r.fs.Stat(r.packPath(id))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is being swept: try again", pack.Name(id))
		}
		if err != nil {
			return err
		}
		u := &packUse{round: epochKey{t.Header.Cluster, t.Header.Epoch}, size: info.Size, live: make([]uint64, (len(t.Objects)+63)/64)}
		for i := range t.Objects {
			u.rawBytes += uint64(t.Objects[i].Length)
		}
		mu.Lock()
		defer mu.Unlock()
		k.uses[id] = u
		objects += uint64(len(t.Objects))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var failed map[pack.ID]error
	k.nodes, failed, err = r.loadPacks(ctx, packs, func(o pack.Object) bool { return o.Kind != object.KindPage })
	if err != nil {
		return nil, err
	}
	for _, err := range failed {
		return nil, err
	}
	k.shards = 1
	for k.shards < maxShards && objects*neededBytes/uint64(k.shards) > uint64(memoryBytes) {
		k.shards *= 2
	}
	for shard := range k.shards {
		passes(shard, k.shards)
		if err := k.pass(ctx, packs, shard, each); err != nil {
			return nil, err
		}
	}
	passes(k.shards, k.shards)
	return k.uses, nil
}

// pass marks the objects of one shard.
func (k *marking) pass(ctx context.Context, packs []pack.ID, shard int, each func(func(*manifest.Manifest) error) error) error {
	var needed, walked idSet
	mask := byte(k.shards - 1)
	err := each(func(m *manifest.Manifest) error {
		for _, g := range m.Guests {
			for _, o := range g.Objects {
				err := k.nodes.walk(ctx, RefOf(o), func(id object.ID) bool { return walked.add(id) }, func(ids []object.ID) {
					for i := range ids {
						if ids[i][0]&mask == byte(shard) && !ids[i].IsZero() {
							needed.add(ids[i])
						}
					}
				})
				if err != nil {
					return fmt.Errorf("%s@%d, guest %s, %s %s: %w", m.Cluster, m.Epoch, g.Name, o.Kind, o.Name, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	return k.r.readTrailers(ctx, packs, func(_ int, id pack.ID, t *pack.Trailer, err error) error {
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		u := k.uses[id]
		if u == nil {
			return fmt.Errorf("%s has moved: try again", pack.Name(id))
		}
		for i := range t.Objects {
			o := &t.Objects[i]
			if o.ID[0]&mask == byte(shard) && needed.has(o.ID) {
				u.live[i/64] |= 1 << (i % 64)
				u.liveBytes += uint64(o.Length)
			}
		}
		return nil
	})
}

// walk visits the ids of all objects of an image, zeros among them, node by node,
// without reading pages. It leaves out what is below nodes for which enter is
// false. Neither is called by two goroutines at once.
func (rd *Reader) walk(ctx context.Context, ref Ref, enter func(object.ID) bool, visit func([]object.ID)) error {
	if !enter(ref.ID) {
		return nil
	}
	visit([]object.ID{ref.ID})
	var root object.Root
	err := rd.fetchNodes(ctx, []object.ID{ref.ID}, object.KindRoot, func(_ int, data []byte) (err error) {
		root, err = object.DecodeRoot(data)
		return err
	})
	if err != nil {
		return err
	}
	visit(root.Branches)
	var mu sync.Mutex
	// below reads nodes that are to be entered, and visits their children. Node i
	// has childrenOf(i) of them.
	below := func(ids []object.ID, kind object.Kind, childrenOf func(i int) int, keep func(i int, children []object.ID)) error {
		todo := make([]object.ID, len(ids)) // zero: not to be read
		for i, id := range ids {
			if !id.IsZero() && enter(id) {
				todo[i] = id
			}
		}
		return rd.fetchNodes(ctx, todo, kind, func(i int, data []byte) error {
			n := childrenOf(i)
			children, err := object.DecodeNode(make([]object.ID, 0, n), data, kind, n)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			visit(children)
			keep(i, children)
			return nil
		})
	}
	leaves := make([]object.ID, object.LeafCount(ref.Size))
	err = below(root.Branches, object.KindBranch, func(i int) int { return min(object.Fanout, len(leaves)-i*object.Fanout) },
		func(i int, children []object.ID) { copy(leaves[i*object.Fanout:], children) })
	if err != nil {
		return err
	}
	pages := object.PageCount(ref.Size)
	return below(leaves, object.KindLeaf, func(i int) int { return int(min(object.Fanout, pages-int64(i)*object.Fanout)) },
		func(int, []object.ID) {})
}

// idSet is a set of objects by eight bytes of their ids. Two objects in 2^64 share
// those; then one that nobody needs is kept. The zero value is empty.
type idSet struct {
	slots []uint64 // 0: free
	used  int
}

// key leaves out the byte that chooses the shard. No key is 0.
func (s *idSet) key(id object.ID) uint64 { return max(1, binary.LittleEndian.Uint64(id[8:])) }

// slot is where k is or would be.
func (s *idSet) slot(k uint64) int {
	i, _ := bits.Mul64(k*0x9e3779b97f4a7c15, uint64(len(s.slots)))
	for s.slots[i] != 0 && s.slots[i] != k {
		if i++; i == uint64(len(s.slots)) {
			i = 0
		}
	}
	return int(i)
}

// add tells whether id is new.
func (s *idSet) add(id object.ID) bool {
	if 4*s.used >= 3*len(s.slots) {
		old := s.slots
		s.slots = make([]uint64, max(1024, 2*len(old)))
		for _, k := range old {
			if k != 0 {
				s.slots[s.slot(k)] = k
			}
		}
	}
	k := s.key(id)
	at := &s.slots[s.slot(k)]
	if *at == k {
		return false
	}
	*at = k
	s.used++
	return true
}

func (s *idSet) has(id object.ID) bool {
	k := s.key(id)
	return len(s.slots) > 0 && s.slots[s.slot(k)] == k
}
