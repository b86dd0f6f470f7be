package progress

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"fermata/protocol/api"
)

// barWidth is that of one bar in columns, which leaves room for a name, a step
// and byte counts on a terminal of 100 columns.
const barWidth = 24

// bars draws a bar for each node or guest that moves bytes, under a line that
// names the current step.
type bars struct {
	all   *mpb.Progress
	step  atomic.Pointer[string] // read by the drawing goroutine
	head  *mpb.Bar
	lines map[string]*line
}

// line is one bar and the step it is in.
type line struct {
	bar   *mpb.Bar
	total int64                  // as last heard
	step  atomic.Pointer[string] // read by the drawing goroutine
}

func newBars(ctx context.Context, w io.Writer) *bars {
	b := &bars{
		// The context is not the operation's: after a cancel the bars stay
		// until Close, so that what is written then is still kept apart.
		all:   mpb.NewWithContext(context.WithoutCancel(ctx), mpb.WithOutput(w), mpb.WithAutoRefresh()),
		lines: map[string]*line{},
	}
	b.head = b.all.New(0, mpb.NopStyle(), mpb.BarPriority(0), mpb.PrependDecorators(
		decor.Any(func(decor.Statistics) string { return text(&b.step) }), decor.Name(" "), decor.Elapsed(decor.ET_STYLE_GO)))
	return b
}

// Write prints p above the bars.
func (b *bars) Write(p []byte) (int, error) { return b.all.Write(p) }

func (b *bars) Event(e *api.Event) {
	if l := lineOf(e); l != "" {
		b.step.Store(&l)
	}
	if e.GetTotalBytes() == 0 {
		return
	}
	l := b.lineFor(place(e))
	step := e.GetStep()
	l.step.Store(&step)
	l.total = int64(e.GetTotalBytes())
	l.bar.SetTotal(l.total, false)
	l.bar.SetCurrent(int64(e.GetDoneBytes()))
}

func (b *bars) lineFor(name string) *line {
	if l, ok := b.lines[name]; ok {
		return l
	}
	l := &line{}
	l.bar = b.all.New(0, mpb.BarStyle(), mpb.BarWidth(barWidth), mpb.BarPriority(len(b.lines)+1),
		mpb.PrependDecorators(
			decor.Name(name, decor.WCSyncSpaceR),
			decor.Any(func(decor.Statistics) string { return text(&l.step) }, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
	b.lines[name] = l
	return l
}

// Done fills the bars: the last events before a result were not about the last bytes.
func (b *bars) Done() {
	for _, l := range b.lines {
		l.bar.SetCurrent(l.total)
		l.bar.SetTotal(l.total, true)
	}
}

// Close takes the step away, since the result says more, and keeps the bars.
func (b *bars) Close() {
	for _, l := range b.lines {
		l.bar.Abort(false)
	}
	b.head.Abort(true)
	b.all.Wait()
}

func text(p *atomic.Pointer[string]) string {
	if s := p.Load(); s != nil {
		return *s
	}
	return ""
}
