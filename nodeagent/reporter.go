package nodeagent

import (
	"bytes"
	"iter"
	"sync"
	"time"

	"fermata/protocol/api"
)

// reportEvery spaces progress reports of one guest; a person reads no faster.
const reportEvery = 200 * time.Millisecond

// reporter serialises progress reports of concurrent work and thins them out.
// The first error of the receiver sticks and later reports are dropped.
//
// Concurrency: safe for use by several goroutines.
type reporter struct {
	mu    sync.Mutex
	to    func(*api.CreateGuestsUpdate) error // nil: nobody listens
	last  map[string]time.Time                // guarded by mu; by guest
	fault error                               // guarded by mu
}

func newReporter(to func(*api.CreateGuestsUpdate) error) *reporter {
	return &reporter{to: to, last: map[string]time.Time{}}
}

// send passes u on, unless it is mere progress and comes too soon.
func (r *reporter) send(u *api.CreateGuestsUpdate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to == nil || r.fault != nil {
		return
	}
	now := time.Now()
	if !u.Created && now.Sub(r.last[u.Guest]) < reportEvery {
		return
	}
	r.last[u.Guest] = now
	r.fault = r.to(u)
}

func (r *reporter) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

// lines iterates over the lines of b.
func lines(b []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(b) {
			if !yield(string(line)) {
				return
			}
		}
	}
}

// meter adds up the progress of pieces.
//
// Concurrency: safe for use by several goroutines.
type meter struct {
	total  uint64
	report func(done, total uint64)

	mu   sync.Mutex
	done uint64    // guarded by mu; of all pieces
	last time.Time // guarded by mu
}

func newMeter(total uint64, report func(done, total uint64)) *meter {
	return &meter{total: total, report: report}
}

// piece returns the progress callback of one piece. Its argument is what of the
// piece is done.
func (m *meter) piece() func(int64) {
	var before uint64 // guarded by m.mu
	return func(done int64) {
		m.mu.Lock()
		m.done += uint64(done) - before
		before = uint64(done)
		all, soon := m.done, time.Since(m.last) < reportEvery
		if !soon {
			m.last = time.Now()
		}
		m.mu.Unlock()
		if !soon && m.report != nil {
			m.report(all, m.total)
		}
	}
}
