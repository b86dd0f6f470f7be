package repository

import (
	"sync"

	"fermata/imageio/index"
	"fermata/imageio/pack"
)

// indexRoom bounds the memory of the index of what need not be stored again. Packs of
// others are learnt as long as there is room. What a writer of this process has stored is
// always learnt, as the next generation builds on it; it takes room from others'.
//
// Concurrency: safe for use by several goroutines.
type indexRoom struct {
	limit int // objects; 0: no bound

	mu       sync.Mutex
	learning int             // guarded by mu; objects that are being added
	declined map[pack.ID]int // guarded by mu; packs that found no room, with their objects
}

func newIndexRoom(bytes int64) *indexRoom {
	limit := int(bytes / index.ObjectBytes)
	if bytes > 0 {
		limit = max(1, limit)
	}
	return &indexRoom{limit: limit, declined: map[pack.ID]int{}}
}

// worthReading reports whether a pack may find room. known is how many objects there are.
func (m *indexRoom) worthReading(id pack.ID, known int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.limit == 0 || known+max(1, m.declined[id]) <= m.limit
}

// learn adds a pack to the index if there is room.
func (m *indexRoom) learn(x *index.Index, id pack.ID, objects []pack.Object) {
	m.mu.Lock()
	if m.limit > 0 && x.Len()+m.learning+len(objects) > m.limit {
		m.declined[id] = len(objects)
		m.mu.Unlock()
		return
	}
	delete(m.declined, id)
	m.learning += len(objects)
	m.mu.Unlock()
	x.Add(id, objects)
	m.mu.Lock()
	m.learning -= len(objects)
	m.mu.Unlock()
}

// forget drops what is known of packs that are gone.
func (m *indexRoom) forget(usable map[pack.ID]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.declined {
		if !usable[id] {
			delete(m.declined, id)
		}
	}
}

// IndexUse is how much memory the index of what need not be stored again takes.
type IndexUse struct {
	Bytes    int64
	Limit    int64 // 0: none
	Declined int   // packs that found no room: what they hold is stored once more when it is met
}

// IndexUse returns what the index takes.
func (r *Repository) IndexUse() IndexUse {
	r.room.mu.Lock()
	defer r.room.mu.Unlock()
	return IndexUse{Bytes: int64(r.index.Len()) * index.ObjectBytes, Limit: int64(r.room.limit) * index.ObjectBytes, Declined: len(r.room.declined)}
}
