package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
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

// report is a line of the load, which has written n pages.
func report(n, bad int, uptime float64) string {
	text := fmt.Sprintf("FERMATA DIRTY pages=256 generation=1 written=%d rate=20.00 gap=0.001 bad=%d records=0 bad-records=0 uptime=%.3f", n, bad, uptime)
	return sealed(text)
}

// sealed is a line with the hash that tells it is whole.
func sealed(text string) string {
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

func TestConsole_Account(t *testing.T) {
	c, say := newConsole(t)
	for _, step := range []struct {
		text string
		want uint64 // pages
	}{
		{"Linux\n", 0},
		{report(100, 0, 1) + report(200, 0, 2), 200},
		{strings.Repeat("noise without an end ", recentBytes/10) + "\n" + report(300, 0, 3) + "FERMATA DIR", 300},
	} {
		say(step.text)
		got, err := c.account()
		if err != nil || (got == nil) != (step.want == 0) || got != nil && got.Written != step.want {
			t.Errorf("%+v, %v, want %d pages", got, err, step.want)
		}
	}
	say("TY\n" + sealed("FERMATA DIRTY-EXIT status=137"))
	if got, err := c.account(); err == nil {
		t.Errorf("took the account of a load that has ended: %+v", got)
	}
	c, say = newConsole(t)
	say(report(400, 1, 4))
	if got, err := c.account(); err == nil {
		t.Errorf("took the account of a damaged guest: %+v", got)
	}
}

func TestConsole_AwaitLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, say := newConsole(t)
		say("Linux\n")
		done := make(chan error, 1)
		go func() { done <- c.awaitLoad(t.Context(), 2*time.Second) }()
		for _, uptime := range []float64{10, 11, 11.9} {
			time.Sleep(time.Second)
			say(report(1, 0, uptime))
		}
		time.Sleep(10 * time.Second)
		select {
		case err := <-done:
			t.Fatalf("returned before the load went on: %v", err)
		default:
		}
		say(report(1, 0, 12))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestConsole_AwaitLoadThatNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		err := console{filepath.Join(t.TempDir(), "none")}.awaitLoad(t.Context(), 1)
		if err == nil || time.Since(begun) < bootBudget {
			t.Errorf("gave up with %v after %s", err, time.Since(begun))
		}
	})
}
