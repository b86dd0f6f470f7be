package main

import (
	"bytes"
	"os"
	"testing"

	"fermata/experiments/result"
	"fermata/protocol/mustrun"
)

// TestMain lets the test binary be the process that is measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerArg {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRun_Quick runs every tool once on small guests, and decodes what is printed
// strictly. Each tool gives the images back as they were, or the run fails.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	var out bytes.Buffer
	err = run(t.Context(), []string{"--quick", "-o", "json", "--dir", scratch, "--guest-dir", image}, &out, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := result.Decode[row](&out)
	if err != nil {
		t.Fatal(err)
	}
	if len(doc.Rows) != 2*5+2*4+2*3 {
		t.Errorf("%d rows", len(doc.Rows))
	}
	for _, r := range doc.Rows {
		if r.Stored == 0 || len(r.Seconds) != 1 || r.PeakMiB[0] == 0 || r.Step != prune && (r.Bytes == 0 || r.MBPerS[0] == 0) {
			t.Errorf("row %+v", r)
		}
	}
	if zstd, ours := find(doc.Rows, "zstd -1", next), find(doc.Rows, fermataZstd, next); ours.Stored >= zstd.Stored {
		t.Errorf("%d bytes stored, %d by compression alone", ours.Stored, zstd.Stored)
	}
	if entries, err := os.ReadDir(scratch); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-guests", "0"}, {"-memory", "1"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
