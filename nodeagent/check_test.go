package nodeagent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
	"fermata/vmm/qemu"
	"fermata/vmm/vmmtest"
)

// checkBench is a bench whose agent knows a real QEMU, and a request that it could carry out.
func checkBench(t *testing.T) (*bench, *api.CheckGuestsRequest) {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU)
	b := newBench(t, 1)
	image := b.checkpoint(2)
	dir, err := os.MkdirTemp("/dev/shm", "fermata-check-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	a := b.agent
	a.cfg.MemoryDir = dir
	if a.qemu, err = qemu.Probe(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	spec := &api.GuestSpec{Name: "g1", Accel: "tcg", Machine: "pc-q35-7.2", Cpu: "qemu64", MemoryBytes: vmmtest.ProgramMemory, Vcpus: 1}
	was, err := a.machineConfig(&guest{cluster: "c", spec: spec, dir: a.guestDir("c", "g1")}, nil, nil, a.memoryDir("c", "g1")).Preview(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if image.Guests[0].Machine, err = json.Marshal(was); err != nil {
		t.Fatal(err)
	}
	req := b.createRequest("c", 3, spec)
	req.Images, req.Packs = image.Guests, image.Packs
	return b, &api.CheckGuestsRequest{Create: req}
}

func (b *bench) check(req *api.CheckGuestsRequest) (checked bool, err error) {
	err = b.agent.CheckGuests(b.t.Context(), req, func(u *api.CheckGuestsUpdate) error {
		checked = checked || u.Checked
		return nil
	})
	return checked, err
}

// TestCheckGuests_FindsWhatCreateWouldMeet checks beside the guest that runs, which goes on.
func TestCheckGuests_FindsWhatCreateWouldMeet(t *testing.T) {
	b, good := checkBench(t)
	for _, read := range []bool{false, true} {
		good.ReadData = read
		if checked, err := b.check(good); err != nil || !checked {
			t.Fatalf("a request that can be carried out (read data %t): checked %t, %v", read, checked, err)
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(*api.CreateGuestsRequest)
		class fault.Class
		text  string
	}{
		{"no memory", func(r *api.CreateGuestsRequest) { r.Guests[0].MemoryBytes = 2 << 30 }, fault.NoSpace, "node n1 has 1024 MiB free"},
		{"unknown machine", func(r *api.CreateGuestsRequest) { r.Guests[0].Machine = "pc-q35-99.0" }, fault.Mismatch, "pc-q35-99.0"},
		{"other processor", func(r *api.CreateGuestsRequest) { r.Guests[0].Cpu = "max" }, fault.Invalid, "cpu model"},
		{"newer QEMU", func(r *api.CreateGuestsRequest) {
			r.Images[0].Machine = []byte(strings.Replace(string(r.Images[0].Machine), `"qemu":"`, `"qemu":"9`, 1))
		}, fault.Mismatch, "here the older"},
		{"one more card", func(r *api.CreateGuestsRequest) {
			r.Guests[0].Nics = []*api.NICSpec{{Name: "net0", Network: "lan", Mac: "02:00:00:00:00:01"}}
		}, fault.Mismatch, "device 1"},
		{"no base image", func(r *api.CreateGuestsRequest) {
			r.Guests[0].Disks = []*api.DiskSpec{{Name: "root", Path: filepath.Join(b.agent.paths.allowed[0], "root.img"), Format: "raw", ReadOnly: true}}
		}, fault.Invalid, "root.img"},
		{"no kernel", func(r *api.CreateGuestsRequest) { r.Guests[0].Kernel, r.Images, r.Packs = "/nowhere/vmlinuz", nil, nil }, fault.Invalid, "/nowhere/vmlinuz"},
		{"no bridge", func(r *api.CreateGuestsRequest) { r.Uplinks = []*api.Uplink{{Network: "lan", Bridge: "office"}} }, fault.Mismatch, "no bridge office"},
		{"no packs", func(r *api.CreateGuestsRequest) { r.Packs = nil }, fault.Corrupt, "guest g1"},
		{"no device state", func(r *api.CreateGuestsRequest) { r.Images[0].Objects = r.Images[0].Objects[:0] }, fault.Corrupt, "device state"},
	} {
		req := proto.Clone(good).(*api.CheckGuestsRequest)
		req.ReadData = false
		tc.spoil(req.Create)
		checked, err := b.check(req)
		if fault.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.text) || checked {
			t.Errorf("%s: checked %t, %v (%v), want %v with %q", tc.name, checked, err, fault.ClassOf(err), tc.class, tc.text)
		}
	}
	if rec := b.cluster.record(); rec.Epoch != 1 || !rec.Released || len(b.cluster.list()) != 1 {
		t.Errorf("the check has changed the cluster: %+v, %d guests", rec, len(b.cluster.list()))
	}
	b.allRun()
	// Nothing is known of another cluster, before and after.
	other := proto.Clone(good).(*api.CheckGuestsRequest)
	other.Create.Cluster = "d"
	if _, err := b.check(other); err != nil {
		t.Error(err)
	}
	if _, known := b.agent.clusters["d"]; known {
		t.Error("a check made its cluster known")
	}
}

// TestCheckGuests_ReadsOnRequest: bytes that are damaged are found by reading alone.
func TestCheckGuests_ReadsOnRequest(t *testing.T) {
	b, req := checkBench(t)
	for _, p := range req.Create.Packs {
		path := filepath.Join(b.agent.cfg.Repository.Dir, "packs", p[:2], p+".pack")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := len(data) / 8; i < len(data)/4; i++ {
			data[i] ^= 0xff
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	req.ReadData = true
	if _, err := b.check(req); fault.ClassOf(err) != fault.Corrupt {
		t.Errorf("check that reads damaged packs: %v, want class corrupt", err)
	}
}
