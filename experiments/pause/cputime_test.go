package main

import (
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const line = "1 (a ) b) S 0 1 1 0 -1 4194560 9 9 9 9 100 20 3 4 20 0 1 0 5 9 9"
	if got, err := parseStat(line); err != nil || got != 1270*time.Millisecond {
		t.Errorf("%s, %v, want 1.27s", got, err)
	}
	for _, text := range []string{"", "1 a S 0", "1 (a) S 0 1", "1 (a) S 0 1 1 0 -1 4194560 9 9 9 9 x 20 3 4 20"} {
		if got, err := parseStat(text); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestCPUTime_Grows(t *testing.T) {
	pid := []int{os.Getpid()}
	before, err := cpuTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := cpuTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a busy process used no processor for a minute")
		}
	}
}

func TestCPUTime_OfNobody(t *testing.T) {
	if got, err := cpuTime([]int{1 << 30}); err == nil {
		t.Errorf("%s of a process that is not there", got)
	}
}
