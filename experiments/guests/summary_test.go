package guests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The consoles under testdata are those of real runs of two guests: "clean" with
// MPI and canary over an honest wire, "faulty" with a canary over a wire that
// dropped, doubled, held back and damaged datagrams.
const (
	cleanChecksum = "801c17da8498f929" // of native-jacobi 512 100 50

	dropped  = 60
	doubled  = 60
	heldBack = 60
	flipped  = 59 // one bit: the kernel's UDP checksum notices
	swapped  = 59 // two 16-bit words: it does not, only the canary does
)

func console(t *testing.T, run, guest string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", run+"."+guest+".console"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func summarise(t *testing.T, g1, g2 []byte) Summary {
	t.Helper()
	s, err := Summarise(map[string]io.Reader{"g1": bytes.NewReader(g1), "g2": bytes.NewReader(g2)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSummarise_CleanRun(t *testing.T) {
	s := summarise(t, console(t, "clean", "g1"), console(t, "clean", "g2"))
	if !s.Complete || !s.MPIComplete || !s.CanaryComplete {
		t.Errorf("not complete: %+v", s)
	}
	if s.MPIChecksum != cleanChecksum {
		t.Errorf("checksum %s, want %s", s.MPIChecksum, cleanChecksum)
	}
	if !s.Totals.Clean() || s.Totals.Sent == 0 || s.Totals.Sent != s.Totals.Received {
		t.Errorf("totals %+v", s.Totals)
	}
	if len(s.Pairs) != 2 || s.Pairs[Pair{From: "g1", To: "g2", Wire: "udp"}].Sent == 0 {
		t.Errorf("pairs %+v", s.Pairs)
	}
}

func TestSummarise_FaultyWire(t *testing.T) {
	s := summarise(t, console(t, "faulty", "g1"), console(t, "faulty", "g2"))
	if s.Complete || s.MPIComplete || !s.CanaryComplete {
		t.Errorf("complete %v, MPI %v, canary %v; want the canary alone", s.Complete, s.MPIComplete, s.CanaryComplete)
	}
	if got := s.Totals; got.Clean() || got.Lost != dropped+flipped+swapped || got.Doubled != doubled ||
		got.Reordered != heldBack || got.Corrupt != flipped+swapped {
		t.Errorf("totals %+v", got)
	}
}

// TestSummarise_AnyBeginning cuts the beginning off, as a restart does to the
// console of a guest: every cut that leaves the final report leaves the verdict.
func TestSummarise_AnyBeginning(t *testing.T) {
	g1, g2 := console(t, "clean", "g1"), console(t, "clean", "g2")
	report := bytes.Index(g1, []byte("FERMATA MPI-DONE"))
	for cut := 0; cut <= report; cut += 7 {
		s := summarise(t, g1[cut:], g2)
		if !s.Complete || s.MPIChecksum != cleanChecksum || !s.Totals.Clean() {
			t.Fatalf("cut at %d of %d: %+v", cut, len(g1), s)
		}
	}
	if s := summarise(t, g1[report+1:], g2); s.MPIComplete {
		t.Error("took half a MPI-DONE line")
	}
}

func TestSummarise_AnyEnd(t *testing.T) {
	g1, g2 := console(t, "clean", "g1"), console(t, "clean", "g2")
	end := bytes.LastIndex(g1, []byte("FERMATA CANARY-END"))
	for cut := 0; cut <= end; cut += 7 {
		if s := summarise(t, g1[:cut], g2); s.Complete || s.CanaryComplete {
			t.Fatalf("complete with %d of %d bytes", cut, len(g1))
		}
	}
}

// TestSummarise_Rollback has the console go on in the middle of the run after
// its end: what the guest said before is void until it says it again.
func TestSummarise_Rollback(t *testing.T) {
	g1, g2 := console(t, "clean", "g1"), console(t, "clean", "g2")
	start := bytes.Index(g1, []byte("FERMATA MPI-START"))
	iter := bytes.Index(g1, []byte("FERMATA MPI-ITER"))
	report := bytes.Index(g1, []byte("FERMATA MPI-DONE"))

	for what, since := range map[string]int{"a tick and a status": start + 3, "an iteration": iter} {
		again := append(bytes.Clone(g1), g1[since:report]...)
		if s := summarise(t, again, g2); s.Complete || s.MPIComplete || s.MPIChecksum != "" {
			t.Errorf("MPI complete though g1 wrote %s again: %+v", what, s)
		}
		again = append(again, g1[report:]...)
		if s := summarise(t, again, g2); !s.Complete || s.MPIChecksum != cleanChecksum {
			t.Errorf("not complete though g1 ended again: %+v", s)
		}
	}
	again := append(bytes.Clone(g1), g1[start+3:report]...)
	if s := summarise(t, again, g2); s.CanaryComplete {
		t.Error("canary complete though g1 sends again")
	}
}

// TestSummarise_RollbackKeepsBadPages: going back undoes a result, not what was
// found to be wrong.
func TestSummarise_RollbackKeepsBadPages(t *testing.T) {
	account := func(kind string, written, bad, badRecords int) string {
		return sealed(fmt.Sprintf("FERMATA %s pages=256 generation=1 written=%d rate=20.00 gap=0.001 bad=%d records=9 bad-records=%d uptime=3.000",
			kind, written, bad, badRecords)) + "\n"
	}
	text := account("DIRTY", 300, 0, 0) + account("DIRTY", 500, 2, 1) + account("DIRTY", 400, 0, 0) + account("DIRTY-END", 600, 0, 0)
	s, err := Summarise(map[string]io.Reader{"g1": strings.NewReader(text)})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Dirty["g1"]; s.DirtyBad != 3 || got.Written != 600 || !got.Ended {
		t.Errorf("%d bad, last account %+v; want 3 and the end", s.DirtyBad, got)
	}
}

func TestSummarise_WrongConsole(t *testing.T) {
	g1 := console(t, "clean", "g1")
	_, err := Summarise(map[string]io.Reader{"g2": bytes.NewReader(g1)})
	if err == nil || !strings.Contains(err.Error(), "g1") {
		t.Errorf("error %v, want one that names g1", err)
	}
}

func TestSummarise_MissingGuest(t *testing.T) {
	s, err := Summarise(map[string]io.Reader{"g1": bytes.NewReader(console(t, "clean", "g1"))})
	if err != nil {
		t.Fatal(err)
	}
	if s.CanaryComplete || s.Complete {
		t.Error("complete without g2's console")
	}
	if s, err := Summarise(nil); err != nil || s.Complete || s.CanaryComplete {
		t.Errorf("no consoles: %+v, %v", s, err)
	}
}

func TestSummarise_NoiseWithoutLineEnd(t *testing.T) {
	noise := bytes.Repeat([]byte("x"), 3*maxLineBytes)
	g1 := append(append(noise, '\n'), console(t, "clean", "g1")...)
	if s := summarise(t, g1, console(t, "clean", "g2")); !s.Complete {
		t.Error("not complete after a line of noise")
	}
}
