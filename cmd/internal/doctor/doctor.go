// Package doctor finds out what this machine can and cannot do for Fermata,
// and says what to do about it.
//
// It changes nothing and trusts no name: where a system call or a process can
// be tried, it is tried.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"fermata/cmd/internal/render"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, with a limit that is named
	Fail Status = "fail" // something does not work at all
)

// Check is the outcome of one check.
type Check struct {
	Name     string `json:"name"`
	Status   Status `json:"status"`
	Required bool   `json:"required"` // without it no node agent can run here
	Found    string `json:"found"`
	Remedy   string `json:"remedy"` // empty when there is nothing to do
}

// Report is the document of "doctor".
type Report struct {
	Host   string  `json:"host"`
	OK     bool    `json:"ok"` // no required check fails
	Checks []Check `json:"checks"`
}

// Failed lists the required checks that failed.
func (r Report) Failed() []string {
	var names []string
	for _, c := range r.Checks {
		if c.Required && c.Status == Fail {
			names = append(names, c.Name)
		}
	}
	return names
}

// WriteTable writes a line a check, and the remedies below.
func (r Report) WriteTable(w io.Writer) error {
	rows := render.NewRows("CHECK", "STATUS", "FOUND")
	for _, c := range r.Checks {
		status := string(c.Status)
		if c.Status == Fail && c.Required {
			status += "!"
		}
		rows.Add(c.Name, status, c.Found)
	}
	if err := rows.Write(w); err != nil {
		return err
	}
	separate := "\n"
	for _, c := range r.Checks {
		if c.Status == OK || c.Remedy == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s%s: %s\n", separate, c.Name, render.Clean(c.Remedy)); err != nil {
			return err
		}
		separate = ""
	}
	return nil
}

// Config says what to look at.
type Config struct {
	// Root is put before the paths of /proc, /sys and /dev files that are read.
	// Empty is the machine itself.
	Root string
	// QEMU is the binary. Empty selects the driver's default.
	QEMU string
	// BootKernel is a kernel that the KVM check really boots. Empty: it only
	// looks for the signs of a KVM that can.
	BootKernel string
	// Certificates are the certificate files of this machine.
	Certificates []string
}

// Run makes every check. It returns an error only when ctx ends.
func Run(ctx context.Context, cfg Config) (Report, error) {
	m := machine{Config: cfg}
	report := Report{OK: true}
	report.Host, _ = os.Hostname() // a name for people; nothing depends on it
	for _, check := range m.checks() {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("check %s: %w", check.name, context.Cause(ctx))
		}
		found := check.run(ctx)
		report.Checks = append(report.Checks, Check{
			Name: check.name, Required: check.required,
			Status: found.status, Found: found.text, Remedy: found.remedy,
		})
	}
	report.OK = len(report.Failed()) == 0
	return report, nil
}

// machine is what is looked at.
type machine struct {
	Config
}

// check is one question to the machine.
type check struct {
	name     string
	required bool
	run      func(context.Context) finding
}

// finding is the answer.
type finding struct {
	status Status
	text   string
	remedy string
}

func ok(format string, args ...any) finding {
	return finding{status: OK, text: fmt.Sprintf(format, args...)}
}

func warn(remedy, format string, args ...any) finding {
	return finding{Warn, fmt.Sprintf(format, args...), remedy}
}

func fail(remedy, format string, args ...any) finding {
	return finding{Fail, fmt.Sprintf(format, args...), remedy}
}

func (m machine) checks() []check {
	quick := func(f func() finding) func(context.Context) finding {
		return func(context.Context) finding { return f() }
	}
	return []check{
		{"kernel", true, quick(m.kernel)},
		{"privileges", true, quick(privileges)},
		{"qemu", true, m.qemu},
		{"qemu-img", false, quick(qemuImg)},
		{"kvm", false, m.kvm},
		{"userfaultfd", false, quick(m.userfaultfd)},
		{"ptrace", false, quick(m.ptrace)},
		{"pidfd-getfd", false, quick(pidfdGetfd)},
		{"shared-memory", true, quick(m.sharedMemory)},
		{"huge-pages", false, quick(m.hugePages)},
		{"free-memory", false, quick(m.freeMemory)},
		{"swap", false, quick(m.swap)},
		{"unix-sockets", false, quick(m.unixSockets)},
		{"network-namespaces", false, quick(networkNamespaces)},
		{"clock-source", false, quick(m.clockSource)},
		{"certificates", false, quick(m.certificates)},
	}
}

// read returns a small file of /proc or /sys, trimmed.
func (m machine) read(path string) (string, error) {
	data, err := os.ReadFile(filepath.Join(m.Root, path))
	return strings.TrimSpace(string(data)), err
}
