package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestCerts_Renew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	succeeds(t, nil, "certs", "init", "--dir", dir, "--validity", "480h")
	succeeds(t, nil, "certs", "issue", "--dir", dir, "--role", "agent", "--name", "soon", "--validity", "24h")
	expires := func(args ...string) map[string]renewal {
		t.Helper()
		var doc renewals
		if err := json.Unmarshal([]byte(succeeds(t, nil, append([]string{"certs", "renew", "--dir", dir, "-o", "json"}, args...)...)), &doc); err != nil {
			t.Fatal(err)
		}
		found := map[string]renewal{}
		for _, c := range doc.Certificates {
			found[c.Role+" "+c.Name] = c
		}
		return found
	}
	before := expires()
	if !before["agent soon"].Renewed || before["authority "].Renewed {
		t.Errorf("renew: %+v, want the agent's renewed and the authority's not", before)
	}
	authority := expires("--authority")["authority "]
	if !authority.Renewed || time.Until(authority.Expires.Time) < 9*365*24*time.Hour {
		t.Errorf("renew --authority: %+v, want ten years", authority)
	}
	succeeds(t, nil, "certs", "issue", "--dir", dir, "--role", "agent", "--name", "long")
	after := expires()
	if after["agent long"].Renewed || !after["agent soon"].Renewed {
		t.Errorf("renew: %+v, want only what is due", after)
	}
	named := expires(filepath.Join(dir, "long.crt"), "--validity", "9600h")
	if c := named["agent long"]; len(named) != 1 || !c.Renewed || time.Until(c.Expires.Time) < 9500*time.Hour {
		t.Errorf("renew of one: %+v", named)
	}
	for _, id := range []string{"soon", "long"} {
		if _, err := identity.Load(filepath.Join(dir, id+".crt"), filepath.Join(dir, id+".key"), filepath.Join(dir, "ca.crt")); err != nil {
			t.Error(err)
		}
	}
	if r := fermata(t, nil, "certs", "renew", "--dir", t.TempDir(), filepath.Join(dir, "long.crt")); r.status != 3 || !strings.Contains(r.stderr, "ca.crt") {
		t.Errorf("no authority: status %d, stderr %q", r.status, r.stderr)
	}
}

// TestEtcdTLS_FollowsRenewal: the certificate that a coordinator shows to an etcd of
// others is read for each connection.
func TestEtcdTLS_FollowsRenewal(t *testing.T) {
	ca := t.TempDir()
	if err := identity.CreateCA(ca, 0); err != nil {
		t.Fatal(err)
	}
	f, err := identity.Issue(ca, identity.Request{Role: identity.RoleCoordinator, Name: "c"}, filepath.Join(ca, "c"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := etcdTLS(f.Cert, f.Key, f.CA)
	if err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		t.Helper()
		cert, err := config.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.SerialNumber.String()
	}
	before := shown()
	if _, err := identity.Renew(ca, f.Cert, 0); err != nil {
		t.Fatal(err)
	}
	if shown() == before {
		t.Error("the old certificate is shown after a renewal")
	}
}
