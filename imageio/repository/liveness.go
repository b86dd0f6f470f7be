package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"sync"

	"fermata/imageio/index"
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
	if k.nodes, err = r.loadPacks(ctx, packs, isNode); err != nil {
		return nil, err
	}
	if err := k.nodes.firstFailed; err != nil {
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

func isNode(_ pack.ID, o *pack.Object) bool { return o.Kind != object.KindPage }

// pass marks the objects of one shard.
func (k *marking) pass(ctx context.Context, packs []pack.ID, shard int, each func(func(*manifest.Manifest) error) error) error {
	var needed idSet
	walked := placeSet{rd: k.nodes}
	mask := byte(k.shards - 1)
	err := each(func(m *manifest.Manifest) error {
		for _, g := range m.Guests {
			for _, o := range g.Objects {
				err := k.nodes.eachObject(ctx, RefOf(o), traversal{enter: walked.add, want: func(_ object.Kind, id object.ID) bool {
					if id[0]&mask == byte(shard) {
						needed.add(id)
					}
					return false
				}})
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

// idSet is a set of objects by eight bytes of their ids. Of 2^64 objects two share
// those: good for counting, and for what may err by keeping too much.
type idSet struct{ keys keySet }

// key leaves out the byte that chooses the shard.
func (s *idSet) key(id object.ID) uint64 { return binary.LittleEndian.Uint64(id[8:]) }

// add tells whether id is new.
func (s *idSet) add(id object.ID) bool { return s.keys.add(s.key(id)) }

func (s *idSet) has(id object.ID) bool { return s.keys.has(s.key(id)) }

// placeSet is a set of objects by their places in the packs of a reader, which are
// no two objects'.
type placeSet struct {
	rd   *Reader
	keys keySet
}

// add tells whether id is new. What the reader cannot find always is.
func (s *placeSet) add(id object.ID) bool {
	loc, ok := s.rd.index.Lookup(id)
	return !ok || s.keys.add(placeKey(loc))
}

// placeKey is a location in 64 bits, see the limits of package pack.
func placeKey(loc index.Location) uint64 {
	return uint64(loc.Pack)<<36 | uint64(loc.Run)<<20 | uint64(loc.Offset)
}

// keySet is a set of numbers, in 11 to 22 bytes each. The zero value is empty.
type keySet struct {
	slots []uint64 // of a number and one; 0: free
	used  int
	most  bool // the one number that has no slot: 2^64-1
}

// slot is where k, a number and one, is or would be.
func (s *keySet) slot(k uint64) int {
	i, _ := bits.Mul64(k*0x9e3779b97f4a7c15, uint64(len(s.slots))) // the golden ratio spreads places, too
	for s.slots[i] != 0 && s.slots[i] != k {
		if i++; i == uint64(len(s.slots)) {
			i = 0
		}
	}
	return int(i)
}

// add tells whether k is new.
func (s *keySet) add(k uint64) bool {
	if k++; k == 0 {
		old := s.most
		s.most = true
		return !old
	}
	if 4*s.used >= 3*len(s.slots) {
		old := s.slots
		s.slots = make([]uint64, max(1024, 2*len(old)))
		for _, k := range old {
			if k != 0 {
				s.slots[s.slot(k)] = k
			}
		}
	}
	at := &s.slots[s.slot(k)]
	if *at == k {
		return false
	}
	*at = k
	s.used++
	return true
}

func (s *keySet) has(k uint64) bool {
	if k++; k == 0 {
		return s.most
	}
	return len(s.slots) > 0 && s.slots[s.slot(k)] == k
}
