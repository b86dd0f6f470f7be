//go:build !race

// The model has one goroutine and nothing for the race detector to watch.

package cutmodel_test

import (
	"testing"

	"fermata/protocol/round/cutmodel"
)

// three guests on two nodes, two links: frames go to a neighbour on the same node, and
// over both links.
var three = []cutmodel.Guest{
	{Node: 0, Sends: []int{2, 1}},
	{Node: 0, Sends: []int{2}},
	{Node: 1, Sends: []int{0, 1}},
}

func TestExplore_EveryCutIsConsistent(t *testing.T) {
	report, err := cutmodel.Explore(three, cutmodel.All)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", report)
	if report.Cuts == 0 || report.Early == 0 || report.InCut == 0 {
		t.Errorf("%+v: a model in which that never happens proves nothing", report)
	}
}

// Without any one of the rules some cut is not consistent.
func TestExplore_NoticesWhatIsLeftOut(t *testing.T) {
	for name, leave := range map[string]func(*cutmodel.Rules){
		"early frames do not wait":            func(r *cutmodel.Rules) { r.HoldEarly = false },
		"nothing is recorded":                 func(r *cutmodel.Rules) { r.Record = false },
		"marker before all guests are cut":    func(r *cutmodel.Rules) { r.MarkLast = false },
		"record ended before the marker came": func(r *cutmodel.Rules) { r.AwaitMarker = false },
	} {
		t.Run(name, func(t *testing.T) {
			rules := cutmodel.All
			leave(&rules)
			report, err := cutmodel.Explore(three, rules)
			if err == nil {
				t.Fatalf("not noticed in %d states", report.States)
			}
			t.Logf("noticed after %d states: %v", report.States, err)
		})
	}
}
