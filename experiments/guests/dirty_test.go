package guests

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
)

const (
	dirtyPageBytes = 4096
	dirtyBudget    = 20 * time.Second // for what takes half a second on a free machine
)

// dirtied is the guests' program that rewrites memory, run on this machine, whose
// memory the test can injure.
type dirtied struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan Line // closed at the end of the output
	said   strings.Builder
	memory *os.File
	start  DirtyStart
}

func startDirty(t *testing.T, args ...string) *dirtied {
	t.Helper()
	mustrun.Need(t, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	d := &dirtied{t: t, cmd: exec.Command(filepath.Join(dir, "dirty"), args...), lines: make(chan Line, 1000)}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.lines)
		for in := bufio.NewScanner(io.TeeReader(out, &d.said)); in.Scan(); {
			if line, ok := Parse(in.Text()); ok {
				d.lines <- line
			}
		}
	}()
	t.Cleanup(d.end)
	d.await("a start", func(l Line) bool {
		start, ok := l.Body.(DirtyStart)
		d.start = start
		return ok
	})
	if d.memory, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", d.cmd.Process.Pid), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

// end kills the program. After it, said is all that it wrote.
func (d *dirtied) end() {
	if d.cmd.ProcessState != nil {
		return
	}
	if d.memory != nil {
		d.memory.Close()
	}
	d.cmd.Process.Kill()
	for range d.lines {
	}
	d.cmd.Wait()
}

// await reads lines until one is wanted.
func (d *dirtied) await(what string, wanted func(Line) bool) {
	d.t.Helper()
	deadline := time.After(dirtyBudget)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("ended before %s", what)
			}
			if wanted(line) {
				return
			}
		case <-deadline:
			d.t.Fatalf("no %s within %s", what, dirtyBudget)
		}
	}
}

func (d *dirtied) signal(s unix.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
	if s != unix.SIGSTOP {
		return
	}
	// A process stops some time after the signal.
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, d.cmd.Process.Pid, &info, unix.WSTOPPED, nil); err != nil {
		d.t.Fatal(err)
	}
}

func (d *dirtied) page(number int) []byte {
	d.t.Helper()
	b := make([]byte, dirtyPageBytes)
	if _, err := d.memory.ReadAt(b, int64(d.start.Address)+int64(number)*dirtyPageBytes); err != nil {
		d.t.Fatal(err)
	}
	return b
}

func (d *dirtied) put(number int, b []byte) {
	d.t.Helper()
	if _, err := d.memory.WriteAt(b, int64(d.start.Address)+int64(number)*dirtyPageBytes); err != nil {
		d.t.Fatal(err)
	}
}

func generation(page []byte) uint64 { return binary.LittleEndian.Uint64(page[16:]) }

// TestDirty_NoticesEveryInjury does to pages what a faulty checkpoint would, and
// wants each named.
func TestDirty_NoticesEveryInjury(t *testing.T) {
	d := startDirty(t, "-e", "20", "-b", "1", "1", "20", "2")
	const stale, torn, misplaced, flipped, zero, ballast, other = 3, 50, 100, 200, 255, 500, 17
	d.signal(unix.SIGSTOP)
	old := map[int][]byte{stale: d.page(stale), torn: d.page(torn)}
	d.signal(unix.SIGCONT)
	// The next round but one is the first that began after they were read.
	rounds := generation(old[stale]) + 3
	d.await("two rounds", func(l Line) bool {
		s, ok := l.Body.(Dirty)
		return ok && s.Generation >= rounds
	})
	d.signal(unix.SIGSTOP)
	d.put(stale, old[stale])
	d.put(torn, old[torn][:dirtyPageBytes/2])
	d.put(misplaced, d.page(other))
	flip := d.page(flipped)
	flip[dirtyPageBytes-1] ^= 0x80
	d.put(flipped, flip)
	d.put(zero, make([]byte, dirtyPageBytes))
	d.put(ballast, d.page(ballast-1))
	d.signal(unix.SIGCONT)

	// Found once: a rewritten page is good again. The one of the ballast stays bad, and its
	// thread comes back to it after 2048 pages, or sixteen rounds.
	want := map[uint64]string{stale: "stale", torn: "torn", misplaced: "misplaced", flipped: "torn", zero: "torn", ballast: "misplaced"}
	got := map[uint64]string{}
	var after uint64
	d.await("two rounds after the injuries were found", func(l Line) bool {
		switch b := l.Body.(type) {
		case DirtyBad:
			got[b.Page] += b.Fault
			if b.Page == misplaced && b.FoundPage != other {
				t.Errorf("%+v, want found page %d", b, other)
			}
		case Dirty:
			if b.Bad >= uint64(len(want)) && after == 0 {
				after = b.Generation + 2 // still less than until it is looked at again
			}
			return after > 0 && b.Generation >= after
		}
		return false
	})
	if !maps.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	d.end()
	s, err := Summarise(map[string]io.Reader{"g1": strings.NewReader(d.said.String())})
	if err != nil {
		t.Fatal(err)
	}
	if s.DirtyBad != uint64(len(want)) {
		t.Errorf("summary says %d bad, want %d", s.DirtyBad, len(want))
	}
}

// TestDirty_NoticesALostRecord puts an old state of the disk under the program.
func TestDirty_NoticesALostRecord(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4*dirtyPageBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDirty(t, "-e", "20", "-d", disk, "1", "1")
	laps := func(n uint64) func(Line) bool {
		return func(l Line) bool {
			s, ok := l.Body.(Dirty)
			return ok && s.Records >= 4*n
		}
	}
	d.await("a lap of the disk", laps(1))
	d.signal(unix.SIGSTOP)
	old, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	d.signal(unix.SIGCONT)
	var records uint64
	d.await("another lap", func(l Line) bool {
		s, ok := l.Body.(Dirty)
		if ok && records == 0 {
			records = s.Records + 8
		}
		return ok && s.Records >= records
	})
	d.signal(unix.SIGSTOP)
	if err := os.WriteFile(disk, old, 0o600); err != nil {
		t.Fatal(err)
	}
	d.signal(unix.SIGCONT)
	d.await("bad records", func(l Line) bool {
		s, ok := l.Body.(Dirty)
		return ok && s.BadRecords > 0
	})
}

// TestDirty_KeepsItsRate looks at every report, so a burst would show.
func TestDirty_KeepsItsRate(t *testing.T) {
	d := startDirty(t, "-e", "100", "-t", "1", "4", "20")
	const most = 20 * 1.2 // a backlog of 10 ms may fall into 100 ms
	var end Dirty
	d.await("an end", func(l Line) bool {
		s, ok := l.Body.(Dirty)
		if ok && s.Rate > most {
			t.Errorf("%.1f MiB/s in one report, want at most %.1f", s.Rate, most)
		}
		end = s
		return s.Ended
	})
	if end.Rate <= 0 || end.Rate > 20.5 || end.Bad != 0 {
		t.Errorf("%+v, want 20 MiB/s at most", end)
	}
}
