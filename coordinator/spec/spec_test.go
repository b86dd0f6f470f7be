package spec_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fermata/coordinator/spec"
	"fermata/protocol/fault"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file beside the test's input.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// inputs are the YAML files in a folder of testdata.
func inputs(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s (%v)", dir, err)
	}
	return files
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decode(t *testing.T, text string) *spec.Spec {
	t.Helper()
	s, err := spec.Decode("cluster.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDecode_ReportsEveryProblemWithItsLine(t *testing.T) {
	for _, file := range inputs(t, "testdata/problems") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s, err := spec.Decode("cluster.yaml", read(t, file))
			var problems *spec.Problems
			if s != nil || !errors.As(err, &problems) || len(problems.List) == 0 {
				t.Fatalf("got %v, %v; want problems", s, err)
			}
			if got := fault.ClassOf(err); got != fault.Invalid {
				t.Errorf("class %v, want invalid", got)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".txt", []byte(err.Error()+"\n"))
		})
	}
}

func TestDecode_CanonicalForm(t *testing.T) {
	for _, file := range inputs(t, "testdata/good") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			first, err := spec.Decode(file, read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			out := roundTrip(t, first)
			golden(t, strings.TrimSuffix(file, ".yaml")+".canonical", out)
		})
	}
}

// roundTrip checks that the canonical form means the same and is its own
// canonical form.
func roundTrip(t *testing.T, s *spec.Spec) []byte {
	t.Helper()
	out, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := spec.Decode("canonical", out)
	if err != nil {
		t.Fatalf("decode of the canonical form: %v\n%s", err, out)
	}
	if diff := cmp.Diff(s, again); diff != "" {
		t.Errorf("canonical form means something else (-want +got):\n%s", diff)
	}
	twice, err := again.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, twice) {
		t.Errorf("canonical form of the canonical form differs:\n%s\n%s", out, twice)
	}
	return out
}

// TestDecode_Samples decodes what people start from.
func TestDecode_Samples(t *testing.T) {
	for _, file := range inputs(t, "../../configs") {
		if base := filepath.Base(file); base == "agent.yaml" || base == "coordinator.yaml" {
			continue // of other programs, which decode them in their own tests
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			s, err := spec.Decode(file, read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, s)
			for _, g := range s.Guests {
				if strings.Contains(g.Cmdline, "${") {
					t.Errorf("guest %s: command line %q keeps a variable", g.Name, g.Cmdline)
				}
			}
		})
	}
}

func TestDecode_BoundsItsInput(t *testing.T) {
	head := "name: c\nguests:\n"
	guest := "  - {name: a, memory: 64MiB, kernel: /k}\n"
	for _, c := range []struct {
		name, text, want string
	}{
		{"too large", head + strings.Repeat("#", spec.MaxBytes), "at most 1048576 are read"},
		{"too many guests", head + "  - {count: 1000, prefix: a, memory: 64MiB, kernel: /k}\n  - {count: 25, prefix: b, memory: 64MiB, kernel: /k}\n", "1025 guests, at most 1024"},
		{"too large when written out", head + "  - {count: 1024, prefix: a, memory: 64MiB, kernel: /k, cmdline: " + strings.Repeat("x", 2000) + "}\n", "written out"},
		{"long command line", head + "  - {name: a, memory: 64MiB, kernel: /k, cmdline: " + strings.Repeat("x", 2048) + "}\n", "2048 bytes, at most 2047"},
		{"long text in many guests", head + "  - {count: 1024, prefix: a, memory: 64MiB, kernel: /k, cmdline: " + strings.Repeat("x", 1000000) + "}\n", "text of 1000000 bytes"},
		{"deep", head + strings.Repeat("[", 100000), "not YAML"},
		{"alias bomb", "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nname: *c\n" + head[8:] + guest, "aliases (*c) are not understood"},
		{"self reference", "name: &a [*a]\n", "want a single value"},
		{"many problems", head + strings.Repeat("  - {}\n", 1000), "more problems"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := spec.Decode("cluster.yaml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				msg := "no error"
				if err != nil {
					msg = err.Error()[:min(500, len(err.Error()))]
				}
				t.Errorf("got %s, want %q", msg, c.want)
			}
			if err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("report of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestDecode_TemplatesAndVariables(t *testing.T) {
	s := decode(t, `
name: c
defaults: {memory: 64MiB, kernel: /k, cmdline: "n=${name} i=${index}/${count} $${x} $$${y}"}
guests:
  - {name: head, memory: 1GiB}
  - {count: 2, prefix: w}
`)
	var got []string
	for _, g := range s.Guests {
		got = append(got, g.Name+": "+g.Cmdline)
	}
	want := []string{
		"head: n=head i=1/3 ${x} $${y}",
		"w1: n=w1 i=2/3 ${x} $${y}",
		"w2: n=w2 i=3/3 ${x} $${y}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if s.Guests[0].MemoryBytes != 1<<30 || s.Guests[1].MemoryBytes != 64<<20 {
		t.Errorf("memory %d and %d", s.Guests[0].MemoryBytes, s.Guests[1].MemoryBytes)
	}
	if s.Policies.PauseBudget != 10*time.Second || s.Policies.SkewBudget != 5*time.Second || s.Policy != spec.Spread || s.Policies.Outside != spec.OutsideDrop {
		t.Errorf("policies %+v, %s", s.Policies, s.Policy)
	}
}

func TestDecode_GeneratedMACs(t *testing.T) {
	text := `
name: c
networks: [{name: lan}]
defaults: {memory: 64MiB, kernel: /k, nics: [{network: lan}, {network: lan}]}
guests: [{count: 50, prefix: w}]
`
	s, same := decode(t, text), decode(t, text)
	other := decode(t, strings.Replace(text, "name: c", "name: d", 1))
	seen := map[string]bool{}
	for i, g := range s.Guests {
		for j, n := range g.NICs {
			if n.MAC != same.Guests[i].NICs[j].MAC {
				t.Errorf("%s %s: %s, then %s", g.Name, n.Name, n.MAC, same.Guests[i].NICs[j].MAC)
			}
			if n.MAC == other.Guests[i].NICs[j].MAC {
				t.Errorf("%s %s: same address in two clusters", g.Name, n.Name)
			}
			if !strings.Contains("26ae", n.MAC[1:2]) {
				t.Errorf("%s is not a locally administered single address", n.MAC)
			}
			seen[n.MAC] = true
		}
	}
	if len(seen) != 100 {
		t.Errorf("%d different addresses, want 100", len(seen))
	}
}

func TestSpec_ResolvePaths(t *testing.T) {
	s := decode(t, `
name: c
guests:
  - name: a
    memory: 64MiB
    kernel: ../vmlinuz
    initrd: /abs/initrd
    disks: [{name: d, path: disks/d.img, format: raw}]
`)
	if err := s.RequireAbsolutePaths(); err == nil || !strings.Contains(err.Error(), `kernel of guest a: "../vmlinuz"`) {
		t.Errorf("got %v, want the relative kernel", err)
	}
	s.ResolvePaths("/srv/clusters")
	g := s.Guests[0]
	if g.Kernel != "/srv/vmlinuz" || g.Initrd != "/abs/initrd" || g.Disks[0].Path != "/srv/clusters/disks/d.img" {
		t.Errorf("got %s, %s, %s", g.Kernel, g.Initrd, g.Disks[0].Path)
	}
	if err := s.RequireAbsolutePaths(); err != nil {
		t.Error(err)
	}
}

func TestSpec_GuestSpecs(t *testing.T) {
	s, err := spec.Decode("everything", read(t, "testdata/good/everything.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	specs := s.GuestSpecs()
	if len(specs) != len(s.Guests) {
		t.Fatalf("%d guests, want %d", len(specs), len(s.Guests))
	}
	head, w1 := specs[0], specs[1]
	if head.GetName() != "head" || head.GetMemoryBytes() != 1<<30 || head.GetVcpus() != 2 || head.GetAccel() != "tcg" ||
		head.GetMachine() != "pc-q35-7.1" || head.GetCpu() != "Nehalem" || head.GetNics()[0].GetMac() != "52:54:00:ab:cd:01" ||
		head.GetNics()[1].GetName() != "eth1" || head.GetNics()[1].GetNetwork() != "storage" {
		t.Errorf("head: %v", head)
	}
	if d := w1.GetDisks(); len(d) != 2 || d[0].GetPath() != "/images/w1.qcow2" || d[0].GetFormat() != "qcow2" || !d[1].GetReadOnly() || d[0].GetReadOnly() {
		t.Errorf("w1: %v", w1)
	}
	if w1.GetKernel() != "build/vmlinuz" || w1.GetInitrd() != "build/initrd.img" || !strings.Contains(w1.GetCmdline(), "fermata.index=2") {
		t.Errorf("w1: %v", w1)
	}
}

func FuzzDecode(f *testing.F) {
	for _, dir := range []string{"testdata/problems", "testdata/good"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := spec.Decode("fuzz", data)
		if err == nil {
			roundTrip(t, s)
			return
		}
		var problems *spec.Problems
		if !errors.As(err, &problems) {
			t.Fatalf("error without problems: %v", err)
		}
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + 2
		for _, p := range problems.List {
			if p.Line < 1 || p.Line > lines+bytes.Count(data, []byte("\u0085"))+bytes.Count(data, []byte("\u2028"))+bytes.Count(data, []byte("\u2029")) {
				t.Errorf("problem on line %d of %d: %s", p.Line, lines, p.Text)
			}
		}
	})
}
