package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func newConsole(t *testing.T) (console, func(text string)) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return console{f.Name()}, func(text string) {
		if _, err := f.WriteString(text); err != nil {
			t.Error(err)
		}
	}
}

// report is a line of the load.
func report(iteration int, uptime float64) string {
	text := fmt.Sprintf("FERMATA MPI-ITER iteration=%d residual=0x1p-3 checksum=0 uptime=%.3f", iteration, uptime)
	h := fnv.New32a()
	h.Write([]byte(text))
	return fmt.Sprintf("%s #%08x\n", text, h.Sum32())
}

func TestConsole_LongestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, say := newConsole(t)
		l := c.listen(t.Context())
		for _, gap := range []time.Duration{10, 20, 170, 20, 30} {
			time.Sleep(gap * time.Millisecond)
			say(".")
		}
		time.Sleep(40 * time.Millisecond)
		got, err := l.end()
		if err != nil || got < 169*time.Millisecond || got > 172*time.Millisecond {
			t.Errorf("%s, %v, want 170ms", got, err)
		}
	})
}

// TestConsole_SilenceAtTheEnd: a guest that never speaks again was silent too.
func TestConsole_SilenceAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, say := newConsole(t)
		say(".")
		l := c.listen(t.Context())
		time.Sleep(time.Second)
		if got, err := l.end(); err != nil || got < 998*time.Millisecond {
			t.Errorf("%s, %v, want one second", got, err)
		}
	})
}

func TestConsole_ListenToNothing(t *testing.T) {
	l := console{filepath.Join(t.TempDir(), "none")}.listen(t.Context())
	if _, err := l.end(); err == nil {
		t.Error("heard a console that is not there")
	}
}

func TestConsole_AwaitLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, say := newConsole(t)
		say("Linux\n" + report(5, 1) + report(10, 2))
		done := make(chan error, 1)
		var rate float64
		go func() {
			var err error
			rate, err = c.awaitLoad(t.Context(), 10)
			done <- err
		}()
		time.Sleep(10 * time.Second)
		select {
		case err := <-done:
			t.Fatalf("returned before the load went on: %v", err)
		default:
		}
		say(report(15, 2.5) + report(20, 3))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// Ten iterations in one second, a grid each.
		if rate != 10*gridBytes {
			t.Errorf("%.0f bytes a second, want %d", rate, 10*gridBytes)
		}
	})
}

func TestConsole_AwaitLoadThatNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := console{filepath.Join(t.TempDir(), "none")}.awaitLoad(t.Context(), 1)
		if err == nil || time.Since(begun) < bootBudget {
			t.Errorf("gave up with %v after %s", err, time.Since(begun))
		}
	})
}
