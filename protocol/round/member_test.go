package round_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"fermata/protocol/round"
)

func newMember(t *testing.T, epoch round.Epoch) *round.Member {
	t.Helper()
	m, err := round.NewMember(round.MemberConfig{Cluster: "c", Node: "n1", Tick: time.Second, Epoch: epoch})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func prepare(e round.Epoch) round.Request {
	return round.Request{
		Call: round.CallPrepare, Round: round.ID{Cluster: "c", Epoch: e}, Token: 1, To: "n1",
		Members: []round.NodeID{"n1"}, Options: round.Options{PauseBudget: 5 * time.Second},
	}
}

func TestMember_RefusesWhatIsNotForIt(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*round.Request)
		want   error
	}{
		"another cluster":      {func(r *round.Request) { r.Round.Cluster = "d" }, round.ErrNotMember},
		"another node":         {func(r *round.Request) { r.To = "n2" }, round.ErrNotMember},
		"not among members":    {func(r *round.Request) { r.Members = []round.NodeID{"n2"} }, round.ErrNotMember},
		"no members":           {func(r *round.Request) { r.Members = nil }, round.ErrInvalid},
		"members twice":        {func(r *round.Request) { r.Members = []round.NodeID{"n1", "n1"} }, round.ErrInvalid},
		"budget below a tick":  {func(r *round.Request) { r.Options.PauseBudget = time.Millisecond }, round.ErrInvalid},
		"no call":              {func(r *round.Request) { r.Call = round.CallNone }, round.ErrInvalid},
		"the restored epoch":   {func(r *round.Request) { r.Round.Epoch = 4 }, round.ErrStaleEpoch},
		"older still":          {func(r *round.Request) { r.Round.Epoch = 3 }, round.ErrStaleEpoch},
		"cut of the restored":  {func(r *round.Request) { r.Call, r.Round.Epoch = round.CallCut, 4 }, round.ErrOutOfOrder},
		"finish without a say": {func(r *round.Request) { r.Call = round.CallFinish }, round.ErrInvalid},
	} {
		m := newMember(t, 4)
		r := prepare(5)
		tc.change(&r)
		if err := m.Step(r); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if m.HasReady() || m.Phase() != round.MemberIdle {
			t.Errorf("%s: refused, but something changed: %+v", name, m.Ready())
		}
	}
}

func TestMember_FenceOfOtherCalls(t *testing.T) {
	m := newMember(t, 0)
	if err := m.Fence(7); err != nil {
		t.Fatal(err)
	}
	if r := m.Ready(); r.Journal == nil || r.Journal.Token != 7 {
		t.Errorf("a larger token must be journaled: %+v", r)
	}
	if err := m.Fence(7); err != nil || m.HasReady() {
		t.Errorf("the same token: %v, %+v", err, m.Ready())
	}
	if err := m.Fence(6); !errors.Is(err, round.ErrFenced) {
		t.Errorf("a smaller token: %v, want ErrFenced", err)
	}
	if err := m.Step(prepare(1)); !errors.Is(err, round.ErrFenced) {
		t.Errorf("a round with a smaller token: %v, want ErrFenced", err)
	}
}

func TestRecoverMember_AfterRestoreIgnoresOlderRound(t *testing.T) {
	cfg := round.MemberConfig{Cluster: "c", Node: "n1", Tick: time.Second, Epoch: 9}
	m, err := round.RecoverMember(cfg, round.Journal{Cluster: "c", Token: 3, Epoch: 8, Phase: round.MemberPreparing})
	if err != nil {
		t.Fatal(err)
	}
	if m.HasReady() || m.Epoch() != 9 || m.Phase() != round.MemberIdle {
		t.Errorf("epoch %d, %s, %+v; want epoch 9, idle, nothing to do", m.Epoch(), m.Phase(), m.Ready())
	}
	if _, err := round.RecoverMember(cfg, round.Journal{Cluster: "d"}); !errors.Is(err, round.ErrNotMember) {
		t.Errorf("journal of another cluster: %v", err)
	}
}

func TestRecords_SurviveJSON(t *testing.T) {
	for p := round.MemberIdle; p <= round.MemberFailed; p++ {
		same(t, round.Journal{Cluster: "c", Token: 1 << 60, Epoch: 7, Lead: 3, Phase: p, Outcome: round.Aborted, Payload: []byte{0, 255}})
	}
	for p := round.PhaseIdle; p <= round.PhaseOver; p++ {
		same(t, round.Record{
			Round: round.ID{Cluster: "c", Epoch: 7}, Token: 3, Members: []round.NodeID{"n1"},
			Options: round.Options{PauseBudget: time.Second, DiscardChannels: true}, Phase: p, Outcome: round.Committed, Reason: "r",
		})
	}
	var p round.MemberPhase
	if err := p.UnmarshalText([]byte("dancing")); !errors.Is(err, round.ErrInvalid) {
		t.Errorf("unknown phase: %v", err)
	}
}

func same[T any](t *testing.T, want T) {
	t.Helper()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got T
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v became %+v by way of %s", want, got, text)
	}
}
