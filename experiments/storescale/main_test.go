package main

import (
	"bytes"
	"os"
	"testing"

	"fermata/experiments/result/resulttest"
)

// TestMain lets the test binary be the process that is measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerArg {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRun_Quick makes small repositories, and decodes what is printed strictly.
func TestRun_Quick(t *testing.T) {
	doc := resulttest.Quick[row](t, run)
	if len(doc.Rows) != 2 || len(doc.Goals) != 2 {
		t.Fatalf("%d rows, %d goals", len(doc.Rows), len(doc.Goals))
	}
	for _, r := range doc.Rows {
		// The second checkpoint has two of three pages; what it shares lies between
		// pages of the first that nobody needs then, so all those packs are half dead.
		if r.Pages < 19000 || r.Packs == 0 || r.LiveShare < 0.3 || r.OpenS[0] <= 0 || r.PlanS[0] <= 0 {
			t.Errorf("row %+v", r)
		}
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-pages", "1"}, {"-pages", "many"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
