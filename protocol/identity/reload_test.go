package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuedFor makes a certificate that was issued at then and is valid that long, and
// loads it by that clock; from then on the clock is the test's.
func issuedFor(t *testing.T, ca string, role Role, name string, then time.Time, validity time.Duration) *Identity {
	t.Helper()
	f, err := issue(ca, Request{Role: role, Name: name, Validity: validity}, filepath.Join(t.TempDir(), name), then)
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

// lookNow has the next handshake look at the files, as one a second later would.
func lookNow(ids ...*Identity) {
	for _, id := range ids {
		id.mu.Lock()
		id.looked = time.Time{}
		id.mu.Unlock()
	}
}

// shakeHands connects a client to a server with configurations that were made before,
// and returns when the server's certificate expires.
func shakeHands(server, client *tls.Config) (serverNotAfter time.Time, err error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	s, c := tls.Server(a, server), tls.Client(b, client)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		return time.Time{}, err
	}
	if err := <-done; err != nil {
		return time.Time{}, err
	}
	return c.ConnectionState().PeerCertificates[0].NotAfter, nil
}

// TestIdentity_FollowsRenewal: both ends have run since before their certificates
// expired, and go on once those are renewed.
func TestIdentity_FollowsRenewal(t *testing.T) {
	ca := t.TempDir()
	past := time.Now().Add(-3 * time.Hour)
	if err := createCA(ca, 2*time.Hour, past); err != nil {
		t.Fatal(err)
	}
	agent := issuedFor(t, ca, RoleAgent, "n1", past, time.Hour)
	coordinator := issuedFor(t, ca, RoleCoordinator, "c1", past, time.Hour)
	server, client := agent.Server(RoleCoordinator), coordinator.Client(RoleAgent, "n1")
	if _, err := shakeHands(server, client); err == nil {
		t.Fatal("expired certificates are accepted")
	}
	if _, err := Renew(ca, agent.Files().Cert, 0); err == nil || !strings.Contains(err.Error(), "certs renew --dir DIR --authority") {
		t.Errorf("renew under an expired authority: %v, want what to do about it", err)
	}
	if err := RenewAuthority(ca, 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range []*Identity{agent, coordinator} {
		if _, err := Renew(ca, id.Files().Cert, 48*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	lookNow(agent, coordinator)
	notAfter, err := shakeHands(server, client)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(notAfter); left < 47*time.Hour {
		t.Errorf("the server shows a certificate of %s", left)
	}
	if agent.NotAfter() != notAfter {
		t.Errorf("not after %s, shown %s", agent.NotAfter(), notAfter)
	}
}

// TestRenewAuthority_OldCertificatesStay: certificates from before verify against
// the new file, and those from after against an old copy of it.
func TestRenewAuthority_OldCertificatesStay(t *testing.T) {
	ca := authority(t)
	before := issued(t, ca, RoleAgent, "n1")
	oldCA := filepath.Join(t.TempDir(), "ca.crt")
	data, err := os.ReadFile(filepath.Join(ca, CACertFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(oldCA, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RenewAuthority(ca, 20*365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	after := issued(t, ca, RoleAgent, "n2")
	for _, f := range []Files{before.Files(), {Cert: after.Files().Cert, Key: after.Files().Key, CA: oldCA}} {
		if _, err := Load(f.Cert, f.Key, f.CA); err != nil {
			t.Error(err)
		}
	}
	certs, err := CertificatesIn(ca)
	if err != nil || len(certs) != 1 || time.Until(certs[0].NotAfter) < 19*365*24*time.Hour {
		t.Errorf("authority: %+v, %v", certs, err)
	}
}

// TestIdentity_UnfitFilesChangeNothing: what is half written, gone or somebody
// else's is told, and the certificate that was loaded stays in use.
func TestIdentity_UnfitFilesChangeNothing(t *testing.T) {
	ca := authority(t)
	id := issued(t, ca, RoleAgent, "n1")
	was := id.NotAfter()
	other := issued(t, ca, RoleAgent, "n2")
	copyTo := func(from, to string) {
		t.Helper()
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyTo(other.Files().Key, id.Files().Key)
	for _, step := range []struct {
		name string
		do   func()
		says string
	}{
		{"key without its certificate", func() {}, "private key does not match"},
		{"somebody else's", func() { copyTo(other.Files().Cert, id.Files().Cert) }, "is for agent n2 now"},
		{"gone", func() { os.Remove(id.Files().Cert) }, "no such file"},
	} {
		step.do()
		s := id.Status()
		if s.Problem == nil || !strings.Contains(s.Problem.Error(), step.says) || len(s.Warnings) != 1 {
			t.Errorf("%s: %v, warnings %q, want a problem with %q", step.name, s.Problem, s.Warnings, step.says)
		}
		if !id.NotAfter().Equal(was) {
			t.Errorf("%s: another certificate is in use", step.name)
		}
	}
}

func TestRenew_KeepsHolderAndHosts(t *testing.T) {
	ca := authority(t)
	prefix := filepath.Join(t.TempDir(), "head")
	f, err := Issue(ca, Request{Role: RoleCoordinator, Name: "head", Hosts: []string{"192.0.2.1", "head.example"}, Validity: 100 * time.Hour}, prefix)
	if err != nil {
		t.Fatal(err)
	}
	before, err := ReadCertificate(f.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := renew(ca, f.Cert, 0, time.Now().Add(50*time.Hour)); err != nil {
		t.Fatal(err)
	}
	after, err := ReadCertificate(f.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if got := after.NotAfter.Sub(before.NotAfter); got < 49*time.Hour || got > 51*time.Hour {
		t.Errorf("expires %s later, want 50h", got)
	}
	if after.Peer != before.Peer || strings.Join(hostsOf(after.cert), " ") != "head.example 192.0.2.1" {
		t.Errorf("renewed: %s for %q, was %s", after.Peer, hostsOf(after.cert), before.Peer)
	}
	if after.cert.PublicKey.(*ecdsa.PublicKey).Equal(before.cert.PublicKey) {
		t.Error("the key is the old one")
	}
	stranger := authority(t)
	if _, err := Renew(stranger, f.Cert, 0); err == nil || !strings.Contains(err.Error(), "not of the authority in "+stranger) {
		t.Errorf("renewed by a stranger: %v", err)
	}
}

// TestWatcher: a warning comes 30 days before the end, daily, and no more after a renewal.
func TestWatcher(t *testing.T) {
	ca := authority(t)
	id := issuedFor(t, ca, RoleAgent, "n1", time.Now(), 40*24*time.Hour)
	start := time.Now()
	clock := start
	id.now = func() time.Time { return clock }
	var said []string
	w := watcher{id: id, notAfter: id.NotAfter(), events: Events{
		Warn:    func(text string) { said = append(said, text) },
		Renewed: func(time.Time) { said = append(said, "renewed") },
	}}
	steps := []struct {
		after time.Duration
		do    func()
		says  string // empty: nothing
	}{
		{time.Hour, nil, ""},
		{11 * 24 * time.Hour, nil, "expires on"},
		{11*24*time.Hour + time.Hour, nil, ""},
		{12*24*time.Hour + time.Hour, nil, "fermata certs renew --dir DIR " + id.Files().Cert},
		{41 * 24 * time.Hour, nil, "expired on"},
		{42 * 24 * time.Hour, func() {
			if _, err := renew(ca, id.Files().Cert, 0, clock); err != nil {
				t.Error(err)
			}
		}, "renewed"},
		{43 * 24 * time.Hour, nil, ""},
	}
	for _, s := range steps {
		clock, said = start.Add(s.after), nil
		if s.do != nil {
			s.do()
		}
		w.look()
		if got := strings.Join(said, "; "); (s.says == "") != (got == "") || !strings.Contains(got, s.says) {
			t.Errorf("after %s: said %q, want %q", s.after, got, s.says)
		}
	}
}
