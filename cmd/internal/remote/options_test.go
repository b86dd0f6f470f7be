package remote

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

func filesIn(dir string) identity.Files {
	return identity.Files{
		Cert: filepath.Join(dir, "operator.crt"), Key: filepath.Join(dir, "operator.key"), CA: filepath.Join(dir, "ca.crt"),
	}
}

func TestResolve_Precedence(t *testing.T) {
	machine := t.TempDir()
	config := "coordinator: [head1:7000, head2:7000]\ncerts: /machine/certs\n"
	if err := os.WriteFile(filepath.Join(machine, "operator.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	nothing := t.TempDir()
	for _, c := range []struct {
		name    string
		options Options
		env     map[string]string
		want    Target
	}{
		{"machine", Options{ConfigDir: machine}, nil,
			Target{Addresses: []string{"head1:7000", "head2:7000"}, Files: filesIn("/machine/certs")}},
		{"environment over machine", Options{ConfigDir: machine}, map[string]string{EnvCoordinator: "a:1, b:2", EnvCerts: "/env"},
			Target{Addresses: []string{"a:1", "b:2"}, Files: filesIn("/env")}},
		{"lab of the environment", Options{ConfigDir: machine}, map[string]string{EnvLab: "/lab"},
			Target{Addresses: []string{"unix:/lab/coordinator.sock"}, Files: filesIn("/lab/certs")}},
		{"lab flag over environment", Options{ConfigDir: machine, Lab: "/lab"}, map[string]string{EnvCoordinator: "a:1", EnvCerts: "/env", EnvLab: "/other"},
			Target{Addresses: []string{"unix:/lab/coordinator.sock"}, Files: filesIn("/lab/certs")}},
		{"flag over lab flag", Options{ConfigDir: machine, Coordinator: []string{"c:3"}, Lab: "/lab"}, nil,
			Target{Addresses: []string{"c:3"}, Files: filesIn("/lab/certs")}},
		{"file flags", Options{ConfigDir: nothing, Coordinator: []string{"c:3"}, Cert: "x.crt", Key: "x.key"}, nil,
			Target{Addresses: []string{"c:3"}, Files: identity.Files{Cert: "x.crt", Key: "x.key", CA: filepath.Join(nothing, "ca.crt")}}},
		{"plain text", Options{ConfigDir: nothing, Coordinator: []string{"127.0.0.1:3", "unix:/s"}, Plaintext: true}, nil,
			Target{Addresses: []string{"127.0.0.1:3", "unix:/s"}, Plaintext: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.options.Resolve(func(name string) string { return c.env[name] })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestResolve_Refuses(t *testing.T) {
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, "operator.yaml"), []byte("coordinater: [a:1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nothing := t.TempDir()
	for _, c := range []struct {
		options Options
		says    string
	}{
		{Options{ConfigDir: nothing}, "no coordinator"},
		{Options{ConfigDir: bad, Coordinator: []string{"a:1"}}, "coordinater"},
		{Options{ConfigDir: nothing, Coordinator: []string{"a"}}, "want host:port"},
		{Options{ConfigDir: nothing, Coordinator: []string{":1"}}, "want host:port"},
		{Options{ConfigDir: nothing, Coordinator: []string{"unix:"}}, "this one has 0"},
		{Options{ConfigDir: nothing, Coordinator: []string{"unix:/" + strings.Repeat("x", 107)}}, "107 bytes"},
		{Options{ConfigDir: nothing, Coordinator: []string{"10.0.0.1:1"}, Plaintext: true}, "only loopback"},
		{Options{ConfigDir: nothing, Coordinator: []string{"127.0.0.1:1"}, Plaintext: true, CA: "x"}, "excludes"},
	} {
		_, err := c.options.Resolve(func(string) string { return "" })
		if fault.ClassOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want class invalid with %q", c.options, err, c.says)
		}
	}
}

func TestAddFlags_ReadsListsOfAddresses(t *testing.T) {
	var o Options
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{"--coordinator", "a:1,b:2", "--coordinator", "unix:/c"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a:1", "b:2", "unix:/c"}, o.Coordinator); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
