package nodeagent

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// pacer has work that can wait step back for guests, where processors are short. Work
// comes in pieces of a few milliseconds. A piece that had to wait for a processor kept
// others waiting likewise, by the kernel's fairness: a guest's processors, QEMU's loop
// and the agent's own switch, which one frame needs one after the other. So the longer
// pieces wait, the less is asked for: first one piece at a time, then with rests in
// between. On a node with processors to spare nothing changes.
//
// Concurrency: safe for use by several goroutines.
type pacer struct {
	waited func() time.Duration // of the calling thread
	now    func() time.Time
	sleep  func(time.Duration)

	turn sync.Mutex // held by who works, and rests, while strained

	mu     sync.Mutex
	strain int // guarded by mu; from 0 to mostStrain
}

const (
	// shortOf is which part of its time a piece may wait: one in shortOf.
	shortOf = 10
	// noise is what a thread may wait with processors to spare: a wake-up, an interrupt.
	noise = 100 * time.Microsecond
	// A piece that waited too long adds strainStep, one that did not takes 1 away, so
	// that four pieces are enough to step back, and some hundred megabytes of memory
	// pass before all is as it was.
	strainStep = 16
	mostStrain = 4 * strainStep
	// restSlice is how soon a rest ends when somebody begins to wait for the work.
	restSlice = 2 * time.Millisecond
	// longestRest bounds a rest, whatever the piece took.
	longestRest = 50 * time.Millisecond
	// catchUp is three times what a pause commonly lasts where processors are short.
	catchUp = 150 * time.Millisecond
)

// newPacer returns a pacer that has to find out first that there are processors to spare.
func newPacer() *pacer {
	return &pacer{waited: threadWaited, now: time.Now, sleep: time.Sleep, strain: 2 * strainStep}
}

// do does a piece of work, and rests behind it if need be. hurry is asked whether
// somebody waits for more of this work.
func (p *pacer) do(hurry func() bool, work func() error) error {
	if p.level() > 0 {
		p.turn.Lock()
		defer p.turn.Unlock()
	}
	runtime.LockOSThread()
	before, begun := p.waited(), p.now()
	err := work()
	took, waited := p.now().Sub(begun), p.waited()-before
	runtime.UnlockOSThread()
	rests := p.note(waited > max(took/shortOf, noise)) - 1
	if rests > 0 && err == nil {
		p.rest(min(took*time.Duration(rests), longestRest), hurry)
	}
	return err
}

// letCatchUp rests before the first piece of work behind a cut, if processors are short:
// guests have to make up for their pause, and what came for them meanwhile.
func (p *pacer) letCatchUp(hurry func() bool) {
	if p.level() > 1 {
		p.rest(catchUp, hurry)
	}
}

func (p *pacer) rest(left time.Duration, hurry func() bool) {
	for ; left > 0 && !hurry(); left -= restSlice {
		p.sleep(min(left, restSlice))
	}
}

// level is 0 with processors to spare, 1 when there is one piece at a time, and one
// more for each time that a piece's own duration is rested behind it.
func (p *pacer) level() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return levelOf(p.strain)
}

func levelOf(strain int) int { return (strain + strainStep - 1) / strainStep }

// note enters how a piece fared, and returns the level since.
func (p *pacer) note(short bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if short {
		p.strain = min(p.strain+strainStep, mostStrain)
	} else {
		p.strain = max(p.strain-1, 0)
	}
	return levelOf(p.strain)
}

// threadWaited returns for how long the calling thread was able to run and had no
// processor, since it began: the second number of /proc/PID/schedstat, nanoseconds
// (Documentation/scheduler/sched-stats.rst). A kernel that does not count says 0.
func threadWaited() time.Duration {
	b, err := os.ReadFile("/proc/thread-self/schedstat")
	if err != nil {
		return 0
	}
	var ran, waited int64
	if _, err := fmt.Sscan(string(b), &ran, &waited); err != nil {
		return 0
	}
	return time.Duration(waited)
}
