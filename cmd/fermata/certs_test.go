package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"fermata/protocol/identity"
)

func TestCerts_MakeAnInstallation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	if got := succeeds(t, nil, "certs", "init", "--dir", dir); !strings.Contains(got, filepath.Join(dir, "ca.key")) {
		t.Errorf("init: %q", got)
	}
	for role, file := range map[string]string{"operator": "operator", "coordinator": "coordinator", "agent": "x1"} {
		var doc certificate
		out := succeeds(t, nil, "certs", "issue", "--dir", dir, "--role", role, "--name", "x1", "-o", "json")
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(dir, file+".crt"); doc.CertFile != want || doc.Expires.IsZero() {
			t.Errorf("%s: %+v, want the certificate %s", role, doc, want)
		}
		id, err := identity.Load(doc.CertFile, doc.KeyFile, doc.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		if want := (identity.Peer{Role: identity.Role(role), Name: "x1"}); id.Peer() != want {
			t.Errorf("%s: certificate of %s", role, id.Peer())
		}
	}
	succeeds(t, nil, "certs", "issue", "--dir", dir, "--role", "agent", "--name", "ca", "--replace")
	if _, err := identity.Load(filepath.Join(dir, "operator.crt"), filepath.Join(dir, "operator.key"), filepath.Join(dir, "ca.crt")); err != nil {
		t.Errorf("an agent named ca took the authority's place: %v", err)
	}
	if r := fermata(t, nil, "certs", "init", "--dir", dir); r.status == 0 || !strings.Contains(r.stderr, "exists") {
		t.Errorf("second init: status %d, stderr %q", r.status, r.stderr)
	}
	if r := fermata(t, nil, "certs", "issue", "--dir", dir, "--role", "operator", "--name", "x2"); r.status == 0 {
		t.Error("issue replaced a certificate")
	}
	succeeds(t, nil, "certs", "issue", "--dir", dir, "--role", "operator", "--name", "x2", "--replace")
	if r := fermata(t, nil, "certs", "issue", "--dir", t.TempDir(), "--role", "operator", "--name", "x"); r.status != 3 {
		t.Errorf("no authority: status %d, want 3; stderr %q", r.status, r.stderr)
	}
}
