package main

import (
	"bytes"
	"os"
	"testing"

	"fermata/experiments/result/resulttest"
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
	doc := resulttest.Quick[row](t, run, "--guest-dir", image)
	if len(doc.Rows) != 3*5+2*4+2*3 {
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
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-guests", "0"}, {"-memory", "1"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
