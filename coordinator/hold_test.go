package coordinator_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fermata/coordinator"
	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/store/memstore"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// TestRestart_HoldsItsCheckpoint: somebody deletes a checkpoint behind the coordinator's
// back while nodes are about to read it. The restart ends well; afterwards the space is free.
func TestRestart_HoldsItsCheckpoint(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 2)
	l.touch("web", "a", 9)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l.agents["n2"].Inject(coordinatortest.Create, coordinatortest.Park(arrived, goOn))
	ended := make(chan error, 1)
	go func() {
		_, err := c.restart(&api.RestartRequest{Cluster: "web", From: all[1].GetId(), Rollback: true})
		ended <- err
	}()
	<-arrived
	operator, err := repository.Open(t.Context(), l.repoConfig())
	if err != nil {
		t.Fatal(err)
	}
	m, err := operator.Manifest(t.Context(), "web", all[1].GetEpoch())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if _, err := operator.Delete(t.Context(), "web", e.GetEpoch()); err != nil {
			t.Fatal(err)
		}
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatalf("restart from a checkpoint that is deleted meanwhile: %v", err)
	}
	l.wantFirst("web", 2)
	report, err := operator.Sweep(t.Context())
	if err != nil || report.Packs != len(m.Packs) || len(report.InFlight) != 0 {
		t.Errorf("after the restart: %+v, %v; want %d packs removed", report, err, len(m.Packs))
	}
}

// TestCoordinator_MakesNoRepository: a directory without one is most often a mount that is
// missing, and an empty repository in its place would look as if all were lost.
func TestCoordinator_MakesNoRepository(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "scratch")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := runOn(t, dir, nil)
	wantFault(t, err, fault.NotFound, dir, "fermata repo create "+dir)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v was made there, %v", left, err)
	}
}

// TestCoordinator_RefusesAnotherInstallationsRepository: two installations with one
// repository would take each other's checkpoints for theirs.
func TestCoordinator_RefusesAnotherInstallationsRepository(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "repository")
	r, err := repository.Create(ctx, repository.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	east, west := newIdentity(t), newIdentity(t)
	if err := r.Own(ctx, east.Installation(), "east"); err != nil {
		t.Fatal(err)
	}
	err = runOn(t, dir, west)
	wantFault(t, err, fault.Mismatch, "east", "fermata repo release --repository "+dir)
	if _, err := r.Disown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := runOn(t, dir, west); err != nil {
		t.Errorf("a repository that was released: %v", err)
	}
	if owner, err := r.Owner(ctx); err != nil || owner.Installation != west.Installation() || !strings.Contains(owner.Name, "sock") {
		t.Errorf("owner %+v, %v", owner, err)
	}
	err = runOn(t, dir, east)
	wantFault(t, err, fault.Mismatch, "repo release")
}

// newIdentity is a coordinator's, of an installation of its own.
func newIdentity(t *testing.T) *identity.Identity {
	t.Helper()
	certs := t.TempDir()
	if err := identity.CreateCA(certs, 0); err != nil {
		t.Fatal(err)
	}
	f, err := identity.Issue(certs, identity.Request{Role: identity.RoleCoordinator, Name: "c"}, filepath.Join(certs, "c"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(f.Cert, f.Key, f.CA)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// runOn runs a coordinator on a repository until it fails, or owns it. Without an
// identity it is in plain text.
func runOn(t *testing.T, repoDir string, id *identity.Identity) error {
	t.Helper()
	dir, err := os.MkdirTemp("", "run") // for short paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	address := "unix:" + filepath.Join(dir, "c.sock")
	s := memstore.New(memstore.Config{})
	c, err := coordinator.New(coordinator.Config{
		Listen: []string{address}, Plaintext: id == nil, Identity: id, Logger: testLogger(t),
		State:      &coordinator.State{Store: s, Elector: coordinatortest.Candidate{Election: coordinatortest.NewElection(s), Address: address}},
		Repository: repository.Config{Dir: repoDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	owns := func() bool {
		r, err := repository.Open(ctx, repository.Config{Dir: repoDir})
		if err != nil {
			return false
		}
		owner, err := r.Owner(ctx)
		return err == nil && id != nil && owner.Installation == id.Installation()
	}
	await(t, "coordinator fails, or owns the repository", func() bool {
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			return owns()
		}
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
