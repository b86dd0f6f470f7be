package main

import (
	"bytes"
	"testing"

	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the whole experiment, and decodes what it prints strictly.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS)
	doc := resulttest.Quick[row](t, run)
	seen := map[string]int{}
	for _, r := range doc.Rows {
		seen[r.Arm]++
		if len(r.FramesPerS) != 1 || r.RoundTripUS.Median() <= 0 {
			t.Errorf("row %+v", r)
		}
		// Only a bridge may drop: everything else holds the sender up.
		if bridged := r.Arm == armBridge || r.Arm == armTap; r.LostPerMille.Median() != 0 && !bridged {
			t.Errorf("%s at %d bytes lost %s per mille", r.Arm, r.FrameBytes, r.LostPerMille)
		}
	}
	for _, a := range arms {
		if want := map[bool]int{false: 3, true: 2}[a.guest]; seen[a.name] != want {
			t.Errorf("%s was measured at %d sizes, want %d", a.name, seen[a.name], want)
		}
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-length", "1ms"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
