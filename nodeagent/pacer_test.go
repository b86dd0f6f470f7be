package nodeagent

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// scarcity is a pacer whose pieces take a millisecond each and wait for a processor
// for as long as the test says.
type scarcity struct {
	*pacer
	waits  bool
	at     time.Duration // on the clock
	clock  time.Duration // that threads have waited so far
	rested time.Duration
}

func newScarcity() *scarcity {
	s := &scarcity{pacer: newPacer()}
	s.pacer.now = func() time.Time { return time.Unix(0, 0).Add(s.at) }
	s.pacer.waited = func() time.Duration { return s.clock }
	s.pacer.sleep = func(d time.Duration) { s.rested += d }
	return s
}

// piece does one piece and returns how many times its duration was rested behind it.
func (s *scarcity) piece(t *testing.T, hurry func() bool) float64 {
	t.Helper()
	s.rested = 0
	const took = time.Millisecond
	err := s.do(hurry, func() error {
		s.at += took
		if s.waits {
			s.clock += took
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(s.rested) / float64(took)
}

func never() bool { return false }

func TestPacer_RestsLongerTheShorterProcessorsAre(t *testing.T) {
	s := newScarcity()
	s.waits = true
	for range 4 {
		s.piece(t, never)
	}
	if rests := s.piece(t, never); rests < 2.9 {
		t.Errorf("after five pieces that waited, %.1f times their duration is rested, want 3", rests)
	}
	s.waits = false
	for range mostStrain {
		s.piece(t, never)
	}
	if rests, level := s.piece(t, never), s.level(); rests > 0 || level > 0 {
		t.Errorf("with processors to spare again, %.1f times a piece's duration is rested at level %d, want 0 and 0", rests, level)
	}
}

func TestPacer_DoesNotRestWhileSomebodyWaits(t *testing.T) {
	s := newScarcity()
	s.waits = true
	for range 4 {
		s.piece(t, never)
	}
	asked := 0
	rests := s.piece(t, func() bool { asked++; return asked > 1 })
	if rests > float64(restSlice)/float64(time.Millisecond) {
		t.Errorf("%.1f times the piece's duration was rested while somebody waited", rests)
	}
}

func TestPacer_LetsGuestsCatchUpBehindACut(t *testing.T) {
	s := newScarcity()
	s.letCatchUp(never)
	if s.rested != catchUp {
		t.Errorf("rested for %s before it is known that there are processors to spare, want %s", s.rested, catchUp)
	}
	for range mostStrain {
		s.piece(t, never)
	}
	if s.letCatchUp(never); s.rested > 0 {
		t.Errorf("rested for %s with processors to spare", s.rested)
	}
}

func TestPacer_PassesErrorsOnAtOnce(t *testing.T) {
	s := newScarcity()
	s.waits = true
	want := errors.New("no such memory")
	err := s.do(never, func() error { s.at += time.Millisecond; s.clock += time.Second; return want })
	if !errors.Is(err, want) || s.rested > 0 {
		t.Errorf("error = %v after a rest of %s, want that of the work, at once", err, s.rested)
	}
}

func TestPacer_OneAtATimeWhileProcessorsAreShort(t *testing.T) {
	for _, tc := range []struct {
		name     string
		strain   int
		together bool
	}{{"short", mostStrain, false}, {"to spare", 0, true}} {
		t.Run(tc.name, func(t *testing.T) {
			p := newScarcity().pacer
			p.strain = tc.strain
			enough := 100 * time.Millisecond // for the other to come, if it may
			if tc.together {
				enough = 10 * time.Second
			}
			var now atomic.Int32
			met := make(chan struct{}) // closed when two are at work
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					_ = p.do(never, func() error {
						defer now.Add(-1)
						if now.Add(1) == 2 {
							close(met)
						}
						select {
						case <-met:
						case <-time.After(enough):
						}
						return nil
					})
				})
			}
			wg.Wait()
			select {
			case <-met:
				if !tc.together {
					t.Error("two pieces were done at a time")
				}
			default:
				if tc.together {
					t.Error("one piece waited for the other")
				}
			}
		})
	}
}

// TestThreadWaited has two threads share one processor.
func TestThreadWaited(t *testing.T) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	first := 0
	for !set.IsSet(first) {
		first++
	}
	set.Zero()
	set.Set(first)
	// A goroutine that ends with its thread locked ends the thread, too.
	pinned := func(f func()) {
		runtime.LockOSThread()
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			t.Error(err)
		}
		f()
	}
	var stop atomic.Bool
	var other sync.WaitGroup
	other.Go(func() {
		pinned(func() {
			for !stop.Load() {
			}
		})
	})
	waited := make(chan time.Duration)
	go pinned(func() {
		before, begun := threadWaited(), time.Now()
		for threadWaited()-before < time.Millisecond && time.Since(begun) < 10*time.Second {
		}
		waited <- threadWaited() - before
	})
	if w := <-waited; w < time.Millisecond || w > time.Minute {
		t.Errorf("a thread that shared its processor waited for %s", w)
	}
	stop.Store(true)
	other.Wait()
}
