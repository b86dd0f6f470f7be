package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
)

const (
	// quietFor is how long an operation may take before its numbers are shown: what is
	// over by then has its result.
	quietFor = 2 * time.Second
	// repeatEvery spaces lines of numbers: a log that grows by the second helps nobody.
	repeatEvery = 5 * time.Second
)

// lines shows progress without a terminal: the steps as they begin, if wanted, and how
// much is done every few seconds, also when nothing is heard.
type lines struct {
	w     io.Writer
	steps bool // a line whenever a step begins
	begun time.Time
	stop  chan struct{}
	ended sync.WaitGroup

	mu     sync.Mutex
	seen   map[string]bool   // guarded by mu; lines of steps
	latest string            // guarded by mu; the step that began last
	order  []string          // guarded by mu; places that move bytes, as they came
	moving map[string]moving // guarded by mu; by place
	spoke  bool              // guarded by mu; numbers were shown
}

// moving is how much one place has moved in its present step.
type moving struct {
	step        string
	done, total uint64
}

func newLines(w io.Writer, steps bool, quiet, every time.Duration) *lines {
	l := &lines{w: w, steps: steps, begun: time.Now(), stop: make(chan struct{}), seen: map[string]bool{}, moving: map[string]moving{}}
	l.ended.Go(func() { l.repeat(quiet, every) })
	return l
}

// repeat shows the numbers until stop.
func (l *lines) repeat(quiet, every time.Duration) {
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			l.show()
			timer.Reset(every)
		case <-l.stop:
			return
		}
	}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *lines) Event(e *api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.GetTotalBytes() > 0 {
		at := place(e)
		if _, known := l.moving[at]; !known {
			l.order = append(l.order, at)
		}
		l.moving[at] = moving{render.Clean(e.GetStep()), e.GetDoneBytes(), e.GetTotalBytes()}
	}
	line := lineOf(e)
	if line == "" || l.seen[line] {
		return
	}
	l.seen[line], l.latest = true, line
	if l.steps {
		fmt.Fprintln(l.w, line)
	}
}

// show prints one line: the time it has taken, and every place that moves bytes, or the
// step that began last.
func (l *lines) show() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parts []string
	for _, at := range l.order {
		m := l.moving[at]
		if m.done < m.total {
			parts = append(parts, strings.TrimSpace(m.step+" "+at)+": "+amount(m))
		}
	}
	if len(parts) == 0 && l.latest != "" {
		parts = append(parts, l.latest)
	}
	if len(parts) == 0 {
		parts = append(parts, "waiting")
	}
	l.spoke = true
	fmt.Fprintf(l.w, "%s: %s\n", time.Since(l.begun).Round(time.Second), strings.Join(parts, ", "))
}

func amount(m moving) string {
	return fmt.Sprintf("%s of %s (%d %%)", render.Bytes(m.done), render.Bytes(m.total), m.done*100/m.total)
}

// Done shows what has been moved in all, if numbers were shown before.
func (l *lines) Done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.spoke {
		return
	}
	var total uint64
	for _, at := range slices.Sorted(slices.Values(l.order)) {
		total += l.moving[at].total
	}
	if total > 0 {
		fmt.Fprintf(l.w, "%s: done, %s\n", time.Since(l.begun).Round(time.Second), render.Bytes(total))
	}
}

func (l *lines) Close() {
	select {
	case <-l.stop: // closed before
	default:
		close(l.stop)
	}
	l.ended.Wait()
}
