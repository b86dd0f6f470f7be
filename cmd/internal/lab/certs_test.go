package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/protocol/identity"
)

// TestCertificates_RenewedWhenDue: a lab that is older than its certificates, and than
// its authority, makes new ones and leaves the rest alone.
func TestCertificates_RenewedWhenDue(t *testing.T) {
	dir := t.TempDir()
	if err := identity.CreateCA(dir, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	c := certificates{dir: dir, nodes: 2, log: hclog.NewNullLogger()}
	if err := c.make(); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Issue(dir, identity.Request{Role: identity.RoleAgent, Name: "n1", Validity: time.Nanosecond, Replace: true}, filepath.Join(dir, "n1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "coordinator.crt")); err != nil { // killed between the two files
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "n2.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.make(); err != nil {
		t.Fatal(err)
	}
	for _, cert := range c.list() {
		prefix := filepath.Join(dir, cert.prefix)
		id, err := identity.Load(prefix+".crt", prefix+".key", filepath.Join(dir, identity.CACertFile))
		if err != nil {
			t.Errorf("%s: %v", cert.prefix, err)
			continue
		}
		if s := id.Status(); len(s.Warnings) > 0 {
			t.Errorf("%s: %q", cert.prefix, s.Warnings)
		}
	}
	if now, err := os.ReadFile(filepath.Join(dir, "n2.crt")); err != nil || string(now) != string(kept) {
		t.Errorf("a certificate that is not due was renewed (%v)", err)
	}
}
