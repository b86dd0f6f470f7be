package identity

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a CA in a fresh directory.
func authority(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := CreateCA(dir, 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

// issued makes a certificate under ca and loads it.
func issued(t *testing.T, ca string, role Role, name string) *Identity {
	t.Helper()
	f, err := Issue(ca, Request{Role: role, Name: name}, filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	id, err := Load(f.Cert, f.Key, f.CA)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// issuedAt makes a one-hour certificate as if the issuer's clock stood at then,
// and loads it by that clock.
func issuedAt(t *testing.T, ca string, role Role, name string, then time.Time) *Identity {
	t.Helper()
	f, err := issue(ca, Request{Role: role, Name: name, Validity: time.Hour}, filepath.Join(t.TempDir(), name), then)
	if err != nil {
		t.Fatal(err)
	}
	id, err := load(f, func() time.Time { return then })
	if err != nil {
		t.Fatal(err)
	}
	id.now = time.Now
	return id
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %q", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

func readCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIssue_FilesAndContents(t *testing.T) {
	ca := authority(t)
	prefix := filepath.Join(t.TempDir(), "n1")
	f, err := Issue(ca, Request{Role: RoleAgent, Name: "n1", Hosts: []string{"node1.example", "10.0.0.1"}}, prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{f.Key, filepath.Join(ca, CAKeyFile)} {
		st, err := os.Stat(key)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", filepath.Base(key), st.Mode())
		}
	}
	cert := readCert(t, f.Cert)
	if got := cert.URIs[0].String(); got != "fermata://agent/n1" {
		t.Errorf("URI %s", got)
	}
	if got := strings.Join(cert.DNSNames, " "); got != "agent.fermata node1.example" {
		t.Errorf("DNS names %s", got)
	}
	if len(cert.IPAddresses) != 1 || cert.IPAddresses[0].String() != "10.0.0.1" {
		t.Errorf("addresses %v", cert.IPAddresses)
	}
	if left := time.Until(cert.NotAfter); left < 364*24*time.Hour || left > 366*24*time.Hour {
		t.Errorf("valid for %v, want a year", left)
	}
	if left := time.Until(readCert(t, f.CA).NotAfter); left < 3600*24*time.Hour {
		t.Errorf("authority valid for %v, want ten years", left)
	}
	entries, err := os.ReadDir(filepath.Dir(prefix))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("left %v, want key and certificate alone", entries)
	}
}

func TestIssue_NeverOutlivesAuthority(t *testing.T) {
	ca := t.TempDir()
	if err := CreateCA(ca, time.Hour); err != nil {
		t.Fatal(err)
	}
	id := issued(t, ca, RoleOperator, "alice")
	if limit := readCert(t, filepath.Join(ca, CACertFile)).NotAfter; id.NotAfter().After(limit) {
		t.Errorf("certificate lives until %v, authority until %v", id.NotAfter(), limit)
	}
	_, err := issue(ca, Request{Role: RoleAgent, Name: "n1"}, filepath.Join(t.TempDir(), "n1"), time.Now().Add(2*time.Hour))
	wantError(t, err, "authority", "expired")
}

func TestCreateAndIssue_ReplaceNothingUnasked(t *testing.T) {
	ca := authority(t)
	wantError(t, CreateCA(ca, 0), "exists")
	prefix := filepath.Join(t.TempDir(), "n1")
	req := Request{Role: RoleAgent, Name: "n1"}
	f, err := Issue(ca, req, prefix)
	if err != nil {
		t.Fatal(err)
	}
	before := readCert(t, f.Cert).SerialNumber
	_, err = Issue(ca, req, prefix)
	wantError(t, err, "agent n1", "exists")
	req.Replace = true
	if _, err := Issue(ca, req, prefix); err != nil {
		t.Fatal(err)
	}
	if readCert(t, f.Cert).SerialNumber.Cmp(before) == 0 {
		t.Error("renewal kept the old certificate")
	}
	if _, err := Load(f.Cert, f.Key, f.CA); err != nil {
		t.Error(err)
	}
}

func TestRequest_Validate(t *testing.T) {
	for _, c := range []struct {
		name string
		req  Request
		want []string
	}{
		{"no role", Request{Name: "x"}, []string{"role"}},
		{"foreign role", Request{Role: "root", Name: "x"}, []string{`role "root"`}},
		{"no name", Request{Role: RoleAgent}, []string{"name"}},
		{"slash", Request{Role: RoleAgent, Name: "../x"}, []string{"name"}},
		{"long", Request{Role: RoleAgent, Name: strings.Repeat("x", 64)}, []string{"name"}},
		{"operator with hosts", Request{Role: RoleOperator, Name: "x", Hosts: []string{"h"}}, []string{"not for a server"}},
		{"reserved host", Request{Role: RoleAgent, Name: "x", Hosts: []string{"Coordinator.fermata."}}, []string{"stand for roles"}},
		{"bad host", Request{Role: RoleAgent, Name: "x", Hosts: []string{"a:1", "*.b"}}, []string{"a:1", "*.b"}},
		{"negative", Request{Role: RoleAgent, Name: "x", Validity: -1}, []string{"validity"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.req.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestLoad_RefusesWhatCannotWork(t *testing.T) {
	ca, other := authority(t), authority(t)
	dir := t.TempDir()
	f, err := Issue(ca, Request{Role: RoleAgent, Name: "n1"}, filepath.Join(dir, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := Issue(ca, Request{Role: RoleAgent, Name: "n2"}, filepath.Join(dir, "n2"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := issue(ca, Request{Role: RoleAgent, Name: "n3", Validity: time.Hour}, filepath.Join(dir, "n3"), time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, make([]byte, maxPEMBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		files Files
		want  []string
	}{
		{"missing file", Files{f.Cert + "x", f.Key, f.CA}, []string{"no such file"}},
		{"unnamed file", Files{f.Cert, "", f.CA}, []string{"key: missing"}},
		{"key of another", Files{f.Cert, g.Key, f.CA}, []string{"private key does not match"}},
		{"other authority", Files{f.Cert, f.Key, filepath.Join(other, CACertFile)}, []string{"verify against", "unknown authority"}},
		{"junk authority", Files{f.Cert, f.Key, junk}, []string{"no certificate in it"}},
		{"huge", Files{huge, f.Key, f.CA}, []string{"larger than"}},
		{"expired", old, []string{"expired on", "agent n3"}},
		{"authority as identity", Files{filepath.Join(ca, CACertFile), filepath.Join(ca, CAKeyFile), f.CA}, []string{"not one of ours"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(c.files.Cert, c.files.Key, c.files.CA)
			wantError(t, err, c.want...)
		})
	}
}

func TestPlaintextAllowed(t *testing.T) {
	for addr, want := range map[string]bool{
		"unix:/run/fermata.sock":   true,
		"unix:///run/fermata.sock": true,
		"/run/fermata.sock":        true,
		"127.0.0.1:7000":           true,
		"127.8.8.8:7000":           true,
		"[::1]:7000":               true,
		"localhost:7000":           true,
		":7000":                    false,
		"0.0.0.0:7000":             false,
		"[::]:7000":                false,
		"10.0.0.1:7000":            false,
		"node1:7000":               false,
		"localhost.evil.org:7000":  false,
		"127.0.0.1":                false,
		"":                         false,
	} {
		if err := PlaintextAllowed(addr); (err == nil) != want {
			t.Errorf("PlaintextAllowed(%q) = %v, want allowed %v", addr, err, want)
		}
	}
}

func TestRules_LongestPrefixDecides(t *testing.T) {
	r := Rules{"/a/": RoleOperator, "/a/b": RoleAgent}
	for method, want := range map[string]Role{"/a/c": RoleOperator, "/a/b": RoleAgent, "/a/bc": RoleAgent, "/x": ""} {
		if got, _ := r.roleFor(method); got != want {
			t.Errorf("%s: role %q, want %q", method, got, want)
		}
	}
}

func TestFiles_Validate(t *testing.T) {
	err := Files{}.Validate()
	if err == nil || len(strings.Split(err.Error(), "\n")) != 3 {
		t.Errorf("got %v, want all three problems", err)
	}
}
