package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fermata/cmd/internal/view"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/repository"
)

// testRepository makes a repository with three checkpoints of one guest, of which
// each changes one page of the last.
func testRepository(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	r, err := repository.Create(t.Context(), repository.Config{Dir: dir, RunBytes: object.PageBytes})
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 64*object.PageBytes)
	for i := range memory {
		memory[i] = byte(i / object.PageBytes * 37)
	}
	for epoch := uint64(1); epoch <= 3; epoch++ {
		memory[epoch*object.PageBytes] ^= 0xff
		w, err := r.NewWriter(repository.WriterConfig{Cluster: "demo", Epoch: epoch, Node: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := w.PutBytes(t.Context(), memory)
		if err != nil {
			t.Fatal(err)
		}
		res, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m := &manifest.Manifest{Cluster: "demo", Epoch: epoch, CreatedUnixNS: int64(epoch) * int64(time.Hour), Packs: res.Packs,
			Guests: []manifest.Guest{{Name: "a", Node: "n1", Objects: []manifest.Object{{Kind: manifest.KindMemory, Name: "ram0", ID: ref.ID, SizeBytes: uint64(ref.Size)}}}}}
		if epoch == 1 {
			m.Label = "golden"
		}
		if err := r.Commit(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// document runs a command that must succeed and decodes what it prints, strictly.
func document[T any](t *testing.T, args ...string) (doc T) {
	t.Helper()
	decode(t, succeeds(t, nil, append(args, "-o", "json")...), &doc)
	return doc
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

func TestRepo_StatsDiffAndCheck(t *testing.T) {
	dir := testRepository(t)
	t.Setenv(envRepository, dir)
	s := document[view.RepoStats](t, "repo", "stats")
	if len(s.Checkpoints) != 3 || s.RawBytes != 3*64*object.PageBytes || s.Checkpoints[0].Label != "golden" || s.Checkpoints[2].NewBytes != object.PageBytes {
		t.Errorf("%+v", s)
	}
	d := document[view.CheckpointDiff](t, "checkpoints", "diff", "demo@1", "demo@3")
	if len(d.Guests) != 1 || d.Guests[0].State != "changed" || d.Guests[0].ChangedBytes != 2*object.PageBytes {
		t.Errorf("%+v", d)
	}
	if c := document[view.RepoCheck](t, "repo", "check", "--read-data"); !c.Intact || c.Checkpoints != 3 || c.ReadPacks != c.Packs {
		t.Errorf("%+v", c)
	}
	read := 0
	for _, part := range []string{"1/2", "2/2"} {
		read += document[view.RepoCheck](t, "repo", "check", "--read-data-subset", part).ReadPacks
	}
	if read != 3 {
		t.Errorf("two halves read %d packs", read)
	}
	for _, args := range [][]string{{"repo", "stats"}, {"repo", "check"}, {"checkpoints", "diff", "demo@1", "demo@2"}, {"repo", "prune", "--dry-run", "--keep-last", "1"}} {
		if out := succeeds(t, nil, args...); !strings.Contains(out, "demo@") && !strings.Contains(out, "intact") {
			t.Errorf("%v prints %q", args, out)
		}
	}
}

func TestRepo_PruneSaysAndDoes(t *testing.T) {
	dir := testRepository(t)
	args := []string{"repo", "prune", "--repository", dir, "--keep-last", "1", "--keep-labelled", "--compact-below", "1"}
	plan := document[view.RepoPrune](t, append(args, "--dry-run")...)
	if !plan.DryRun || plan.Done != nil || len(plan.Checkpoints) != 3 || plan.Checkpoints[1].Keep || !plan.Checkpoints[0].Keep {
		t.Fatalf("%+v", plan)
	}
	if s := document[view.RepoStats](t, "repo", "stats", "--repository", dir); len(s.Checkpoints) != 3 {
		t.Fatal("a dry run deletes")
	}
	done := document[view.RepoPrune](t, args...)
	if done.DryRun || done.Done.Deleted != 1 || done.Done.FreedBytes == 0 {
		t.Fatalf("%+v", done)
	}
	if c := document[view.RepoCheck](t, "repo", "check", "--read-data", "--repository", dir); !c.Intact || c.Checkpoints != 2 {
		t.Fatalf("%+v", c)
	}
}

func TestRepo_CopyExportImport(t *testing.T) {
	dir := testRepository(t)
	there := filepath.Join(t.TempDir(), "there")
	succeeds(t, nil, "repo", "create", there)
	copied := document[view.RepoCopies](t, "repo", "copy", "--repository", dir, "--to", there, "demo@2")
	if len(copied.Checkpoints) != 1 || copied.Checkpoints[0].Present || copied.Checkpoints[0].NewBytes == 0 {
		t.Fatalf("%+v", copied)
	}
	if all := document[view.RepoCopies](t, "repo", "copy", "--repository", dir, "--to", there, "--cluster", "demo"); len(all.Checkpoints) != 3 || !all.Checkpoints[1].Present {
		t.Fatalf("%+v", all)
	}
	file := filepath.Join(t.TempDir(), "demo-3.fermata")
	succeeds(t, nil, "checkpoints", "export", "demo@3", "-f", file, "--repository", dir)
	if r := fermata(t, nil, "checkpoints", "export", "demo@3", "-f", file, "--repository", dir); r.status != 4 {
		t.Errorf("an export replaces a file: %+v", r)
	}
	if left, err := filepath.Glob(file + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	succeeds(t, nil, "repo", "create", empty, "--stripe-command", "chmod 700")
	if info, err := os.Stat(filepath.Join(empty, "packs")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the stripe command was not run: %v, %v", info, err)
	}
	stream := succeeds(t, nil, "checkpoints", "export", "demo@2", "-f", "-", "--repository", dir)
	piped := filepath.Join(t.TempDir(), "piped")
	if err := os.WriteFile(piped, []byte(stream), 0o600); err != nil {
		t.Fatal(err)
	}
	succeeds(t, nil, "checkpoints", "import", "-f", piped, "--repository", empty)
	if got := document[view.RepoCopies](t, "checkpoints", "import", "-f", file, "--repository", empty); len(got.Checkpoints) != 1 || got.Checkpoints[0].ID != "demo@3" {
		t.Fatalf("%+v", got)
	}
	if c := document[view.RepoCheck](t, "repo", "check", "--read-data", "--repository", empty); !c.Intact || c.Checkpoints != 2 {
		t.Fatalf("%+v", c)
	}
}

func TestRepo_DamageIsToldAndRepaired(t *testing.T) {
	dir := testRepository(t)
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*", "*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, p := range packs { // all but the newest are needed by all
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, verb := range []string{"check", "repair"} {
		args := []string{"repo", verb, "--repository", dir}
		if verb == "check" {
			args = append(args, "--read-data")
		}
		r := fermata(t, nil, args...)
		if r.status != 10 || !strings.Contains(r.stdout, "damaged: 3 checkpoints") || !strings.Contains(r.stderr, "damaged objects: ") {
			t.Errorf("%s: %+v", verb, r)
		}
	}
}

func TestRepo_Mistakes(t *testing.T) {
	t.Setenv(envRepository, "")
	t.Setenv("FERMATA_LAB", "")
	dir := testRepository(t)
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"repo stats --repository /nonexistent", 3, "not a repository"},
		{"repo check --repository " + dir + " --read-data-subset 3/2", 2, "want N/M"},
		{"repo check --repository " + dir + " --read-data-subset x", 2, "want N/M"},
		{"repo prune --repository " + dir + " --keep-last -1", 2, "negative"},
		{"repo prune --repository " + dir + " --compact-below 2", 2, "want 0 to 1"},
		{"repo prune --repository " + dir + " --cluster UPPER", 2, "UPPER"},
		{"repo copy --repository " + dir, 2, `"to" not set`},
		{"repo copy --repository " + dir + " --to " + dir, 2, "same repository"},
		{"repo copy --repository " + dir + " --to " + dir + " demo", 2, "want CLUSTER@EPOCH"},
		{"repo create " + dir, 4, "exists"},
		{"repo create " + dir + "2 --stripe-command false", 2, "--stripe-command"},
		{"checkpoints diff demo@1 --repository " + dir, 2, "B is missing"},
		{"checkpoints diff demo@1 demo@9 --repository " + dir, 3, "demo@9"},
		{"checkpoints export demo@9 -f - --repository " + dir, 3, "demo@9"},
		{"checkpoints import -f /nonexistent --repository " + dir, 3, "no such file"},
	} {
		r := fermata(t, nil, strings.Fields(c.args)...)
		if r.status != c.status || !strings.Contains(r.stderr, c.says) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("fermata %s: status %d, want %d; stderr %q, want %q", c.args, r.status, c.status, r.stderr, c.says)
		}
	}
	if r := fermata(t, nil, "repo", "stats"); r.status != 2 && !strings.Contains(r.stderr, "repository") {
		t.Errorf("without a repository: %+v", r)
	}
}

// TestRepo_Encrypted goes the way of an operator: a key, a repository, a copy into it,
// another key, an export.
func TestRepo_Encrypted(t *testing.T) {
	at := func(name string) string { return filepath.Join(t.TempDir(), name) }
	plain, sealed, first, second := testRepository(t), at("sealed"), at("first.key"), at("second.key")
	made := document[madeKey](t, "repo", "key", "create", first)
	if info, err := os.Stat(first); err != nil || info.Mode().Perm() != 0o600 || len(made.ID) != 16 {
		t.Fatalf("%+v, %v, %v", made, info, err)
	}
	if r := fermata(t, nil, "repo", "key", "create", first); r.status != 4 {
		t.Errorf("a key replaces a file: %+v", r)
	}
	succeeds(t, nil, "repo", "create", sealed, "--key-file", first)
	succeeds(t, nil, "repo", "copy", "--repository", plain, "--to", sealed, "--to-key-command", "cat "+first)

	for _, c := range []struct {
		says   string
		status int
		args   []string
	}{
		{envKeyFile, 14, []string{"--repository", sealed}},
		{"not encrypted", 2, []string{"--repository", plain, "--key-file", first}},
		{"no such file", 2, []string{"--repository", sealed, "--key-file", second}},
		{"none of the others can be", 2, []string{"--repository", sealed, "--key-file", first, "--key-command", "cat " + first}},
	} {
		if r := fermata(t, nil, append([]string{"repo", "stats"}, c.args...)...); r.status != c.status || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%v: %+v", c.args, r)
		}
	}

	t.Setenv(envRepository, sealed)
	t.Setenv(envKeyFile, first)
	if s := document[view.RepoStats](t, "repo", "stats"); len(s.Checkpoints) != 3 {
		t.Errorf("%+v", s)
	}
	other := document[madeKey](t, "repo", "key", "create", second)
	if keys := document[view.RepoKeys](t, "repo", "key", "add", "--new-key-file", second); len(keys.Keys) != 2 {
		t.Errorf("%+v", keys)
	}
	if r := fermata(t, nil, "repo", "key", "remove", made.ID); r.status != 2 {
		t.Errorf("the key in use: %+v", r)
	}
	keys := document[view.RepoKeys](t, "repo", "key", "remove", made.ID, "--key-file", second)
	if len(keys.Keys) != 1 || keys.Keys[0] != (view.RepoKey{ID: other.ID, Used: true}) {
		t.Errorf("%+v", keys)
	}
	if r := fermata(t, nil, "repo", "stats"); r.status != 14 || !strings.Contains(r.stderr, other.ID) {
		t.Errorf("a key that was removed: %+v", r)
	}
	t.Setenv(envKeyFile, second)
	if out := succeeds(t, nil, "repo", "key", "list"); !strings.Contains(out, other.ID) {
		t.Errorf("list prints %q", out)
	}

	file, open := at("sealed.fermata"), at("open.fermata")
	succeeds(t, nil, "checkpoints", "export", "demo@2", "-f", file, "--for-key-file", first)
	succeeds(t, nil, "checkpoints", "export", "demo@2", "-f", open, "--plain")
	to := at("to")
	t.Setenv(envKeyFile, "")
	succeeds(t, nil, "repo", "create", to)
	if r := fermata(t, nil, "checkpoints", "import", "-f", file, "--repository", to); r.status != 14 {
		t.Errorf("without the key: %+v", r)
	}
	succeeds(t, nil, "checkpoints", "import", "-f", file, "--repository", to, "--from-key-file", first)
	if got := document[view.RepoCopies](t, "checkpoints", "import", "-f", open, "--repository", to); len(got.Checkpoints) != 1 || !got.Checkpoints[0].Present {
		t.Errorf("%+v", got)
	}
	if out := succeeds(t, nil, "repo", "key", "list", "--repository", to); !strings.Contains(out, "not encrypted") {
		t.Errorf("list prints %q", out)
	}
}

// TestRepo_Release: a repository has an owner, and whoever asks learns whose it was.
func TestRepo_Release(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repository")
	succeeds(t, nil, "repo", "create", dir)
	if r := fermata(t, nil, "repo", "release", "--repository", dir); r.status == 0 || !strings.Contains(r.stderr, "belongs to no installation") {
		t.Errorf("release of what belongs to nobody: %+v", r)
	}
	r, err := repository.Open(t.Context(), repository.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Own(t.Context(), "0123456789abcdef0123", "192.0.2.1:7410"); err != nil {
		t.Fatal(err)
	}
	if d := document[view.RepoRelease](t, "repo", "release", "--repository", dir); d.Installation != "0123456789abcdef0123" || d.Name != "192.0.2.1:7410" {
		t.Errorf("%+v", d)
	}
	if _, err := r.Owner(t.Context()); !errors.Is(err, repository.ErrNotFound) {
		t.Error(err)
	}
}
