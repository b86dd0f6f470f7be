package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fermata/cmd/internal/render"
	"fermata/protocol/identity"
	"fermata/protocol/mustrun"
)

// host makes a machine whose files are those given, in a directory.
func host(t *testing.T, files map[string]string) machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return machine{Config{Root: root}}
}

func TestChecks_ReadTheMachine(t *testing.T) {
	const swapHead = "Filename Type Size Used Priority\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		check func(machine) finding
		want  Status
		says  string
	}{
		{"kernel", map[string]string{"/proc/sys/kernel/osrelease": "6.1.0-18-cloud\n"}, machine.kernel, OK, "6.1.0-18-cloud"},
		{"old kernel", map[string]string{"/proc/sys/kernel/osrelease": "5.18.9"}, machine.kernel, Fail, "5.18.9"},
		{"first kernel", map[string]string{"/proc/sys/kernel/osrelease": "5.19-rc1"}, machine.kernel, OK, "5.19"},
		{"odd kernel", map[string]string{"/proc/sys/kernel/osrelease": "next"}, machine.kernel, Warn, "not understood"},
		{"no proc", nil, machine.kernel, Fail, "unknown"},
		{"no yama", nil, machine.ptrace, OK, "not restricted"},
		{"yama off", map[string]string{"/proc/sys/kernel/yama/ptrace_scope": "0"}, machine.ptrace, OK, "0"},
		{"yama 3", map[string]string{"/proc/sys/kernel/yama/ptrace_scope": "3"}, machine.ptrace, Fail, "3"},
		{"no swap", map[string]string{"/proc/swaps": swapHead}, machine.swap, OK, "none"},
		{"swap", map[string]string{"/proc/swaps": swapHead + "/dev/sda2 partition 1 0 -2\n/f file 1 0 -3\n"}, machine.swap, Warn, "2 swap areas"},
		{"no huge pages", map[string]string{"/proc/meminfo": "HugePages_Total: 0\n"}, machine.hugePages, OK, "none reserved"},
		{"huge pages", map[string]string{"/proc/meminfo": "HugePages_Total: 8\nHugePages_Free: 6\nHugepagesize: 2048 kB\n"}, machine.hugePages, OK, "6 free of 8, each 2 MiB"},
		{"little memory", map[string]string{"/proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n"}, machine.freeMemory, Warn, "1 GiB available of 4 GiB"},
		{"memory", map[string]string{"/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"}, machine.freeMemory, OK, "4 GiB available"},
		{"tsc", map[string]string{"/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n"}, machine.clockSource, OK, "tsc"},
		{"hpet", map[string]string{"/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"}, machine.clockSource, Warn, "hpet"},
		{"sockets", map[string]string{"/proc/sys/net/unix/max_dgram_qlen": "512", "/proc/sys/net/core/wmem_max": "212992"}, machine.unixSockets, OK, "512"},
		{"short queue", map[string]string{"/proc/sys/net/unix/max_dgram_qlen": "2", "/proc/sys/net/core/wmem_max": "212992"}, machine.unixSockets, Warn, "2 datagrams"},
		{"small buffer", map[string]string{"/proc/sys/net/unix/max_dgram_qlen": "10", "/proc/sys/net/core/wmem_max": "4096"}, machine.unixSockets, Warn, "4 KiB"},
		{"no shm", nil, machine.sharedMemory, Fail, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.check(host(t, c.files))
			if got.status != c.want || !strings.Contains(got.text, c.says) {
				t.Errorf("%+v, want %s with %q", got, c.want, c.says)
			}
			if got.status == Fail && got.remedy == "" {
				t.Error("a failure without a remedy")
			}
		})
	}
}

func TestReport_RequiredFailureIsNotOK(t *testing.T) {
	r := Report{Host: "h", Checks: []Check{
		{Name: "qemu", Status: Fail, Required: true, Found: "not found", Remedy: "install it"},
		{Name: "kvm", Status: Warn, Found: "none", Remedy: "load it"},
		{Name: "swap", Status: OK, Found: "none"},
		{Name: "ptrace", Status: Fail, Found: "scope 3", Remedy: "lower it"},
	}}
	if got := r.Failed(); len(got) != 1 || got[0] != "qemu" {
		t.Errorf("failed %q, want qemu alone", got)
	}
	var b strings.Builder
	if err := render.Write(&b, render.Table, r); err != nil {
		t.Fatal(err)
	}
	want := `CHECK   STATUS  FOUND
qemu    fail!   not found
kvm     warn    none
swap    ok      none
ptrace  fail    scope 3

qemu: install it
kvm: load it
ptrace: lower it
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

// TestRun_OnThisMachine makes every check for real: each must find something
// out, whatever the machine is.
func TestRun_OnThisMachine(t *testing.T) {
	r, err := Run(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range r.Checks {
		if c.Found == "" || seen[c.Name] || c.Status == Fail && c.Remedy == "" {
			t.Errorf("%+v", c)
		}
		seen[c.Name] = true
	}
	if r.OK != (len(r.Failed()) == 0) || len(r.Checks) < 12 {
		t.Errorf("%+v", r)
	}
}

func TestRun_MissingQEMUFails(t *testing.T) {
	r, err := Run(t.Context(), Config{QEMU: "qemu-that-is-not-there"})
	if err != nil {
		t.Fatal(err)
	}
	if r.OK || r.Failed()[0] != "qemu" && r.Failed()[0] != "privileges" {
		t.Errorf("failed %q, want qemu among them", r.Failed())
	}
}

// TestKVM_TrialThatCannotBootFails hands QEMU what is no kernel.
func TestKVM_TrialThatCannotBootFails(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.KVM)
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := machine{Config{BootKernel: kernel}}.kvm(t.Context())
	if got.status != Fail || !strings.Contains(got.text, kernel) || got.remedy == "" {
		t.Errorf("%+v", got)
	}
}

func TestRun_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if _, err := Run(ctx, Config{}); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}

func TestCertificates(t *testing.T) {
	ca := t.TempDir()
	if err := identity.CreateCA(ca, 0); err != nil {
		t.Fatal(err)
	}
	issue := func(name string, validity time.Duration) string {
		f, err := identity.Issue(ca, identity.Request{Role: identity.RoleAgent, Name: name, Validity: validity}, filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		return f.Cert
	}
	long, soon, past := issue("n1", 0), issue("n2", 20*24*time.Hour), issue("n3", time.Nanosecond)
	for name, c := range map[string]struct {
		paths []string
		want  Status
		says  string
	}{
		"none":    {nil, OK, "none on this machine"},
		"good":    {[]string{filepath.Join(ca, identity.CACertFile), long}, OK, "2, the first expires on"},
		"soon":    {[]string{long, soon}, Warn, soon},
		"expired": {[]string{past, soon}, Fail, "fermata certs renew --dir DIR " + past},
		"absent":  {[]string{"/nonexistent.crt"}, Fail, "/nonexistent.crt"},
	} {
		got := machine{Config{Certificates: c.paths}}.certificates()
		if got.status != c.want || !strings.Contains(got.text+got.remedy, c.says) {
			t.Errorf("%s: %+v, want %s with %q", name, got, c.want, c.says)
		}
	}
}
