package main

import (
	"bytes"
	"testing"

	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the experiment once, and decodes what it prints strictly. That a
// guest which zeroes what it frees has less to store holds at any speed.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	doc := resulttest.Quick[row](t, run, "--guest-dir", image)
	if len(doc.Rows) != 2 || len(doc.Goals) != 1 || !doc.Goals[0].Met {
		t.Errorf("%+v", doc)
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-write", "0"}, {"-write", "512"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
