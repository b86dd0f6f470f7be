package qemu

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

func described(t *testing.T) Description {
	t.Helper()
	c := goodConfig()
	dir := t.TempDir()
	c.Kernel, c.Initrd = filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	for path, text := range map[string]string{c.Kernel: "a kernel", c.Initrd: "an initrd"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := c.Describe(Info{Version: qmp.Version{Major: 7, Minor: 2, Micro: 22}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDescription_NoPaths(t *testing.T) {
	d := described(t)
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "/") {
		t.Errorf("a path in %s", b)
	}
	var again Description
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(d, again) {
		t.Errorf("read back %+v, %v", again, err)
	}
}

func TestDescription_Compatible(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Description) // of the host
		want   []string           // in the error; none if empty
	}{
		{"equal", func(*Description) {}, nil},
		{"other patch level", func(d *Description) { d.QEMU = "7.2.1" }, nil},
		{"newer qemu", func(d *Description) { d.QEMU = "10.0.2" }, nil},
		{"older qemu", func(d *Description) { d.QEMU = "7.1.9" }, []string{"saved by 7.2.22, here the older 7.1.9"}},
		{"no version", func(d *Description) { d.QEMU = "" }, []string{"want major.minor"}},
		{"machine", func(d *Description) { d.Machine = "pc-q35-8.0" }, []string{"machine type: saved pc-q35-7.2, here pc-q35-8.0"}},
		{"cpu", func(d *Description) { d.CPU = "EPYC" }, []string{"cpu model: saved qemu64, here EPYC"}},
		{"accel", func(d *Description) { d.Accel = KVM }, []string{"accel: saved tcg, here kvm"}},
		{"vcpus", func(d *Description) { d.VCPUs = 3 }, []string{"vcpus: saved 2, here 3"}},
		{"memory", func(d *Description) { d.MemoryBytes *= 2 }, []string{"memory: saved 67108864, here 134217728"}},
		{"kernel", func(d *Description) { d.KernelSHA256 = "" }, []string{"kernel: saved", "here none"}},
		{"cmdline", func(d *Description) { d.Cmdline += " debug" }, []string{"cmdline"}},
		{"missing features", func(d *Description) { d.CPUMissing = "00000001:ECX=00000001" }, []string{"missing cpu features: saved none"}},
		{"features unknown", func(d *Description) { d.CPUMissing = "" }, nil},
		{"one card less", func(d *Description) { d.Devices = d.Devices[:4] }, []string{"device 4: saved virtio-net-pci,id=nic-eth1", "here none"}},
		{"several", func(d *Description) { d.VCPUs, d.Accel = 1, KVM }, []string{"vcpus", "accel"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			saved := described(t)
			saved.CPUMissing = noneMissing
			host := saved
			c.change(&host)
			err := saved.Compatible(host)
			if len(c.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, vmm.ErrIncompatible) {
				t.Fatalf("error %v, want ErrIncompatible", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

func TestFormatFeatures(t *testing.T) {
	zero := uint32(0)
	got := formatFeatures([]featureWord{
		{EAX: 7, ECX: &zero, Register: "EBX", Features: 0x20},
		{EAX: 1, Register: "EDX"},
		{EAX: 0x80000001, Register: "ECX", Features: 4},
	})
	if want := "00000007.0:EBX=00000020 80000001:ECX=00000004"; got != want {
		t.Errorf("features %q, want %q", got, want)
	}
	if got := formatFeatures([]featureWord{{EAX: 1}}); got != noneMissing {
		t.Errorf("features %q, want %q", got, noneMissing)
	}
}
