package coordinator_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/record"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// taken starts a cluster of two guests, takes checkpoints of it with the first
// byte of guest a being 1, 2, … and returns them.
func (c *client) taken(name string, n int) []*api.Checkpoint {
	c.lab.t.Helper()
	c.running(name, "a", "b")
	var all []*api.Checkpoint
	for i := range n {
		c.lab.touch(name, "a", byte(i+1))
		all = append(all, c.mustCheckpoint(name))
	}
	return all
}

// wantFirst fails unless the first byte of guest a is b.
func (l *lab) wantFirst(cluster string, b byte) {
	l.t.Helper()
	if got := l.memory(cluster, "a")[0]; got != b {
		l.t.Errorf("guest a begins with %d, want %d", got, b)
	}
}

func TestRestart_FromTheLatest(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b")
	l.agents["n1"].Frames("web", l.agents["n1"].Guests("web")[0], 2)
	l.touch("web", "a", 9)
	taken := c.mustCheckpoint("web")
	want := map[string][]byte{"a": l.memory("web", "a"), "b": l.memory("web", "b")}
	l.touch("web", "a", 77)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	report, err := c.restart(&api.RestartRequest{Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if report.GetCheckpointId() != taken.GetId() || report.GetFramesInjected() != 2 || report.GetRestartUs() == 0 || len(report.GetPlan()) != 2 || report.GetDryRun() {
		t.Errorf("report: %v", report)
	}
	for guest, memory := range want {
		if !bytes.Equal(l.memory("web", guest), memory) {
			t.Errorf("guest %s has other memory than at the checkpoint", guest)
		}
	}
	c.wantState("web", up, "")
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
	for name, a := range l.agents {
		if a.Epoch("web") <= taken.GetEpoch() {
			t.Errorf("%s: the new life has epoch %d, the checkpoint %d", name, a.Epoch("web"), taken.GetEpoch())
		}
	}
	if again := c.mustCheckpoint("web"); again.GetEpoch() <= taken.GetEpoch() {
		t.Errorf("epoch %d after %d", again.GetEpoch(), taken.GetEpoch())
	}
}

func TestRestart_RunningClusterIsRolledBackOnRequestOnly(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 2)
	_, err := c.restart(&api.RestartRequest{Cluster: "web"})
	wantFault(t, err, fault.Busy, "is running", "use rollback")
	l.wantFirst("web", 2)
	report, err := c.restart(&api.RestartRequest{Cluster: "web", From: all[0].GetId(), Rollback: true})
	if err != nil || report.GetCheckpointId() != all[0].GetId() {
		t.Fatalf("rollback: %v, %v", report, err)
	}
	l.wantFirst("web", 1)
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
}

// A rollback that cannot succeed must not end the guests.
func TestRestart_RollbackTouchesNothingBeforeItFits(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 1)
	for name, tc := range map[string]struct {
		req   *api.RestartRequest
		class fault.Class
		text  string
	}{
		"no such checkpoint": {&api.RestartRequest{From: "999"}, fault.NotFound, "web@999"},
		"no such node":       {&api.RestartRequest{Nodes: []string{"n9"}}, fault.Invalid, "n9"},
		"no such guest":      {&api.RestartRequest{On: map[string]string{"z": "n1"}}, fault.Invalid, "guest z"},
		"other cluster":      {&api.RestartRequest{From: "db@1"}, fault.Invalid, "not of cluster web"},
		"no epoch":           {&api.RestartRequest{From: "soon"}, fault.Invalid, "soon"},
	} {
		tc.req.Cluster, tc.req.Rollback = "web", true
		_, err := c.restart(tc.req)
		if fault.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v (%v), want %v with %q", name, err, fault.ClassOf(err), tc.class, tc.text)
		}
	}
	l.removePacks(all[0])
	_, err := c.restart(&api.RestartRequest{Cluster: "web", From: all[0].GetId(), Rollback: true})
	wantFault(t, err, fault.Corrupt, all[0].GetId())
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
	c.wantState("web", up, "")
}

func TestRestart_DryRunHasNoSideEffects(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 1)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	before := l.lastEpoch("web")
	calls := l.agents["n1"].Calls(coordinatortest.Destroy) + l.agents["n1"].Calls(coordinatortest.Create)
	report, err := c.restart(&api.RestartRequest{Cluster: "web", Nodes: []string{"n2"}, DryRun: true})
	if err != nil || !report.GetDryRun() || report.GetCheckpointId() != all[0].GetId() {
		t.Fatalf("dry run: %v, %v", report, err)
	}
	for _, a := range report.GetPlan() {
		if a.GetNode() != "n2" || a.GetMemoryBytes() != 16*mib {
			t.Errorf("plan: %v, want n2", a)
		}
	}
	if after := l.agents["n1"].Calls(coordinatortest.Destroy) + l.agents["n1"].Calls(coordinatortest.Create); after != calls || l.lastEpoch("web") != before {
		t.Errorf("a dry run made %d calls and took %d epochs", after-calls, l.lastEpoch("web")-before)
	}
	c.wantState("web", stopped, "")
}

func TestRestart_OnChosenNodes(t *testing.T) {
	l := newLab(t, "n1", "n2", "n3")
	c := l.ready(0)
	c.taken("web", 1)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", On: map[string]string{"a": "n3", "b": "n3"}}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.guests("web"), " "); got != "n3/a n3/b" {
		t.Errorf("guests are at %s", got)
	}
}

func TestRestart_TooLittleMemory(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.taken("web", 1)
	c.running("db", "p", "q", "r", "s", "t", "u") // 6 of 8 places beside web's 2
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	c.running("more", "x", "y")
	_, err := c.restart(&api.RestartRequest{Cluster: "web"})
	wantFault(t, err, fault.NoSpace, "guest a", "guest b", "n")
	c.wantState("web", stopped, "")
	if l.runningGuests("db") != 6 || l.runningGuests("more") != 2 {
		t.Error("other clusters were touched")
	}
}

// etcd is lost with everything in it; the repository alone puts the cluster
// back, and epochs go on where they were.
func TestRestart_EtcdWiped(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 2)
	c.stop()
	l.wipe()
	c = l.ready(0)
	_, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	wantFault(t, err, fault.NotFound, "web")
	list, err := c.ListCheckpoints(t.Context(), &api.ListCheckpointsRequest{Cluster: "web"})
	if err != nil || len(list.GetCheckpoints()) != 2 {
		t.Fatalf("checkpoints: %v, %v", list, err)
	}
	_, err = c.restart(&api.RestartRequest{Cluster: "web"})
	wantFault(t, err, fault.Busy, "is running")
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
		t.Fatal(err)
	}
	l.wantFirst("web", 2)
	c.wantState("web", up, "")
	next := c.mustCheckpoint("web")
	if next.GetEpoch() <= all[1].GetEpoch()+1 {
		t.Errorf("epoch %d after a restart behind epoch %d", next.GetEpoch(), all[1].GetEpoch())
	}
	got, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	if err != nil || !strings.Contains(string(got.GetSpecYaml()), "name: web") {
		t.Errorf("the cluster's record: %v, %v", got, err)
	}
}

// damagePacks spoils the bytes of the packs that only this checkpoint needs,
// where a cheap look does not see it.
func (l *lab) damagePacks(c *api.Checkpoint) {
	l.t.Helper()
	m, err := l.repo.Manifest(l.t.Context(), c.GetCluster(), c.GetEpoch())
	if err != nil {
		l.t.Fatal(err)
	}
	needed := map[string]bool{}
	entries, err := l.repo.Checkpoints(l.t.Context(), c.GetCluster())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Epoch < c.GetEpoch() && e.Manifest != nil {
			for _, p := range e.Manifest.Packs {
				needed[p] = true
			}
		}
	}
	for _, p := range m.Packs {
		if needed[p] {
			continue
		}
		path := filepath.Join(l.repoDir(), "packs", p[:2], p+".pack")
		data, err := os.ReadFile(path)
		if err != nil {
			l.t.Fatal(err)
		}
		for i := len(data) / 8; i < len(data)/4; i++ {
			data[i] ^= 0xff
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
}

func TestRestart_WalksBackOverDamage(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 4)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	// The newest: a manifest that cannot be read. The one before: a pack that is
	// gone. The one before that: bytes that only reading them finds damaged.
	outcome := filepath.Join(l.repoDir(), "clusters", "web")
	names, err := os.ReadDir(outcome)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outcome, names[len(names)-1].Name()), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.damagePacks(all[1])
	l.removePacks(all[2])
	c.stop() // so that nothing it remembers helps
	c = l.ready(0)
	report, err := c.restart(&api.RestartRequest{Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if report.GetCheckpointId() != all[0].GetId() {
		t.Errorf("restarted from %s, want %s", report.GetCheckpointId(), all[0].GetId())
	}
	l.wantFirst("web", 1)
	skipped := strings.Join(report.GetSkipped(), "\n")
	for _, c := range all[1:] {
		if !strings.Contains(skipped, c.GetId()+": ") {
			t.Errorf("skipped does not name %s:\n%s", c.GetId(), skipped)
		}
	}
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
	// What is damaged is listed, with what is wrong.
	list, err := c.ListCheckpoints(t.Context(), &api.ListCheckpointsRequest{Cluster: "web"})
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, e := range list.GetCheckpoints() {
		if e.GetDamage() != "" {
			damaged++
		}
	}
	if len(list.GetCheckpoints()) != 4 || damaged != 1 {
		t.Errorf("%d listed, %d damaged, want 4 and the one whose manifest is rubbish", len(list.GetCheckpoints()), damaged)
	}
	shown, err := c.GetCheckpoint(t.Context(), &api.GetCheckpointRequest{Id: all[2].GetId()})
	if err != nil || !strings.Contains(shown.GetDamage(), "pack") {
		t.Errorf("show of a checkpoint whose pack is gone: %v, %v", shown, err)
	}
	e, err := follow(c.VerifyCheckpoint(t.Context(), &api.VerifyCheckpointRequest{Id: all[1].GetId()}))
	hit := slices.ContainsFunc(e.GetVerify().GetDamage(), func(d *api.Damage) bool { return len(d.GetGuests()) > 0 })
	if err != nil || !hit {
		t.Errorf("verify names neither damage nor guests: %v, %v", e, err)
	}
	// From now on the damage is known, and shown with the checkpoint.
	list, err = c.ListCheckpoints(t.Context(), &api.ListCheckpointsRequest{Cluster: "web"})
	if err != nil || !strings.Contains(list.GetCheckpoints()[1].GetDamage(), "costs guests") {
		t.Errorf("list of a checkpoint that a verification found damaged: %v, %v", list.GetCheckpoints()[1], err)
	}
	shown, err = c.GetCheckpoint(t.Context(), &api.GetCheckpointRequest{Id: all[1].GetId()})
	if err != nil || !strings.Contains(shown.GetDamage(), "costs guests") {
		t.Errorf("show of a checkpoint that a verification found damaged: %v, %v", shown.GetDamage(), err)
	}
	// An explicit one is never replaced by another. Neither a dry run nor a rollback goes on
	// with it, and the guests that run stay.
	for _, dryRun := range []bool{true, false} {
		_, err = c.restart(&api.RestartRequest{Cluster: "web", From: all[1].GetId(), Rollback: true, DryRun: dryRun})
		wantFault(t, err, fault.Corrupt, all[1].GetId(), "costs guests")
		if l.runningGuests("web") != 2 {
			t.Errorf("%d guests run, want 2", l.runningGuests("web"))
		}
	}
	// The newest intact one is what latest means.
	report, err = c.restart(&api.RestartRequest{Cluster: "web", From: "latest", Rollback: true, DryRun: true})
	if err != nil || report.GetCheckpointId() != all[0].GetId() || len(report.GetSkipped()) != 3 {
		t.Errorf("latest: %v, %v", report, err)
	}
	c.wantState("web", up, "")
}

// removePacks removes the packs that the checkpoint before does not need.
func (l *lab) removePacks(c *api.Checkpoint) {
	l.t.Helper()
	m, err := l.repo.Manifest(l.t.Context(), c.GetCluster(), c.GetEpoch())
	if err != nil {
		l.t.Fatal(err)
	}
	var old string
	if before, err := l.repo.Manifest(l.t.Context(), c.GetCluster(), c.GetEpoch()-1); err == nil {
		old = strings.Join(before.Packs, " ")
	}
	for _, p := range m.Packs {
		if !strings.Contains(old, p) {
			if err := os.Remove(filepath.Join(l.repoDir(), "packs", p[:2], p+".pack")); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

func TestRestart_AgentRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		call  coordinatortest.Call
		fault coordinatortest.Fault
		class fault.Class
		text  string
	}{
		{"machine differs", coordinatortest.Create, coordinatortest.Refuse(fault.Mismatch, "CPU model differs"), fault.Mismatch, "CPU model differs"},
		{"no memory after all", coordinatortest.Create, coordinatortest.Refuse(fault.NoSpace, "taken meanwhile"), fault.NoSpace, "taken meanwhile"},
		{"hangs", coordinatortest.Create, coordinatortest.Hang(), fault.Unknown, "no answer in time"},
		{"release hangs", coordinatortest.Release, coordinatortest.Hang(), fault.Unknown, "release-guests"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			l.timeouts = quick()
			c := l.ready(0)
			c.taken("web", 1)
			if _, err := c.stopCluster("web"); err != nil {
				t.Fatal(err)
			}
			l.agents["n2"].Inject(tc.call, tc.fault)
			_, err := c.restart(&api.RestartRequest{Cluster: "web"})
			wantFault(t, err, tc.class, "node n2", tc.text)
			if guests := l.guests("web"); len(guests) != 0 {
				t.Errorf("%v are left", guests)
			}
			c.wantState("web", stopped, tc.text)
			if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
				t.Fatal(err)
			}
			l.wantFirst("web", 1)
		})
	}
}

func TestRestart_LostAnswers(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b")
	l.agents["n1"].Frames("web", l.agents["n1"].Guests("web")[0], 5)
	c.mustCheckpoint("web")
	for _, call := range []coordinatortest.Call{coordinatortest.Create, coordinatortest.Release, coordinatortest.Destroy} {
		l.agents["n1"].Inject(call, coordinatortest.LoseAnswer())
		l.agents["n2"].Inject(call, coordinatortest.LoseRequest())
	}
	report, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	if report.GetFramesInjected() != 5 {
		t.Errorf("%d frames injected, want 5, each counted once", report.GetFramesInjected())
	}
}

// A node dies with its guests. Its cluster goes on elsewhere.
func TestRestart_AfterANodeWasLost(t *testing.T) {
	l := newLab(t, "n1", "n2", "n3")
	c := l.ready(0)
	c.taken("web", 1)
	for _, a := range l.agents {
		a.Lose()
	}
	if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
		t.Fatal(err)
	}
	l.wantFirst("web", 1)
}

// A cluster that was made anew with other guests is not what the checkpoint
// holds: only when the operator deletes it do the checkpoint's guests come back.
func TestRestart_SpecificationOfTheCheckpoint(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 1)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteCluster(t.Context(), &api.DeleteClusterRequest{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	c.create("web", "x", "y", "z")
	if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); fault.ClassOf(err) != fault.Mismatch || !strings.Contains(err.Error(), "guest x") {
		t.Errorf("restart of a cluster with other guests: %v, want class mismatch naming them", err)
	}
	if _, err := c.DeleteCluster(t.Context(), &api.DeleteClusterRequest{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
		t.Fatal(err)
	}
	if got := len(l.guests("web")); got != 2 {
		t.Errorf("%v, want the two guests of %s", l.guests("web"), all[0].GetId())
	}
	got, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	if err != nil || len(got.GetGuests()) != 2 || got.GetGuests()[0].GetState() != api.GuestState_GUEST_STATE_RUNNING {
		t.Errorf("cluster: %v, %v", got, err)
	}
	if got.GetEpoch() <= all[0].GetEpoch() {
		t.Errorf("epoch %d, want more than %s", got.GetEpoch(), record.ID("web", all[0].GetEpoch()))
	}
}

// TestRestart_StepsClocksBeforeTheRelease: no guest takes a frame before all clocks are
// stepped, and where they cannot be, nothing is left.
func TestRestart_StepsClocksBeforeTheRelease(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	text := bytes.ReplaceAll(specOf("web", "a", "b"), []byte("defaults:\n"), []byte("defaults:\n  guest_agent: true\n"))
	if _, err := c.CreateCluster(t.Context(), &api.CreateClusterRequest{SpecYaml: text}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.startCluster("web"); err != nil {
		t.Fatal(err)
	}
	c.mustCheckpoint("web")
	late := l.agents["n2"].Calls(coordinatortest.Release)
	l.agents["n1"].Inject(coordinatortest.StepClocks, coordinatortest.Refuse(fault.Internal, "no clock"))
	_, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true, StepClock: true})
	wantFault(t, err, fault.Internal, "step-clocks", "no clock")
	if n := l.agents["n2"].Calls(coordinatortest.Release) - late; n != 0 || len(l.guests("web")) != 0 {
		t.Errorf("%d releases before all clocks were stepped, guests %v are left", n, l.guests("web"))
	}
	report, err := c.restart(&api.RestartRequest{Cluster: "web", StepClock: true})
	if err != nil || !report.GetClockStepped() || len(report.GetClockNotStepped()) != 0 {
		t.Errorf("report %v, %v", report, err)
	}
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
}
