package main

import (
	"os"
	"strings"
	"testing"

	"fermata/experiments/result"
)

// keptN is the fewest repetitions of a result that is kept.
const keptN = 10

// TestKept_IsADocument reads the result that is kept in the tree as this code
// reads documents.
func TestKept_IsADocument(t *testing.T) {
	f, err := os.Open("../results/pause.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	doc, err := result.Decode[row](f)
	if err != nil {
		t.Fatal(err)
	}
	if doc.Experiment != name || doc.Commit == result.UnknownCommit || strings.HasSuffix(doc.Commit, "-modified") {
		t.Errorf("kept is a document of %q at commit %q", doc.Experiment, doc.Commit)
	}
	for _, r := range doc.Rows {
		if len(r.PauseMS) < keptN {
			t.Errorf("%s at %s was measured %d times, want %d or more", r.Method, size(r.MemoryBytes), len(r.PauseMS), keptN)
		}
	}
}
