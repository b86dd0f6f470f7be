package qemu

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fermata/imageio/extent"
	"fermata/protocol/mustrun"
	"fermata/vmm"
)

// TestLocate writes through the RAM file where Locate says that a guest-physical
// address lies, and has QEMU read that address.
func TestLocate(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	memoryDir, err := os.MkdirTemp("/dev/shm", "qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memoryDir) })
	const size = 5 << 30 // more than fits below the devices: there is a part above 4 GiB
	for _, machine := range []string{"pc-q35-7.2", "pc-i440fx-7.2"} {
		t.Run(machine, func(t *testing.T) {
			ctx := t.Context()
			m, err := Launch(ctx, Config{
				Name: "locate", Accel: TCG, Machine: machine, CPU: "qemu64", MemoryBytes: size, VCPUs: 1,
				Incoming: true, Dir: filepath.Join(t.TempDir(), "m"), MemoryDir: memoryDir,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(m.Kill(ctx), m.Detach()); err != nil {
					t.Error(err)
				}
			}()
			ram, err := os.OpenFile(m.Memory()[0].Path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer ram.Close()
			for i, at := range []int64{1 << 20, 512 << 20, 2<<30 - 8, 4 << 30, 5<<30 + 4096} {
				parts, err := m.Locate(ctx, extent.Of(extent.Extent{Off: at, Len: 8}))
				if err != nil || len(parts) != 1 || parts[0].Where.Len != 8 {
					t.Fatalf("%#x: %+v, %v", at, parts, err)
				}
				mark := fmt.Sprintf("marker %d", i)
				if _, err := ram.WriteAt([]byte(mark), parts[0].Where.Off); err != nil {
					t.Fatal(err)
				}
				text, err := m.human(ctx, fmt.Sprintf("xp /8xb %#x", at))
				if err != nil {
					t.Fatal(err)
				}
				var got strings.Builder
				for _, b := range regexp.MustCompile(`0x([0-9a-f]{2})\b`).FindAllStringSubmatch(text[strings.Index(text, ":"):], -1) {
					var v byte
					if _, err := fmt.Sscanf(b[1], "%x", &v); err != nil {
						t.Fatal(err)
					}
					got.WriteByte(v)
				}
				if got.String() != mark {
					t.Errorf("%#x, offset %#x: QEMU reads %q", at, parts[0].Where.Off, text)
				}
			}
			// A range across the hole is two parts, unless it touches what is no memory.
			low, err := m.Locate(ctx, extent.Of(extent.Extent{Off: 1 << 20, Len: 1 << 30}))
			if err != nil || len(low) != 1 || low[0].Where.Len != 1<<30 {
				t.Errorf("%+v, %v", low, err)
			}
			for _, r := range []extent.Extent{{Off: 0xfe000000, Len: 4096}, {Off: 1 << 30, Len: 3 << 30}, {Off: 1 << 40, Len: 1}, {Off: math.MaxInt64 - 2, Len: 2}} {
				if parts, err := m.Locate(ctx, extent.Of(r)); !errors.Is(err, vmm.ErrNotRAM) {
					t.Errorf("%+v: %+v, %v", r, parts, err)
				}
			}
		})
	}
}

func TestLocate_SeveralParts(t *testing.T) {
	views := parseViews(`
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000fffff (prio 0, rom): pc.ram @00000000000c0000
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
  0000000100000000-000000017fffffff (prio 0, ram): dimm1
  0000000180000000-00000001bfffffff (prio 0, ram): pc.ram @0000000080000000
`)
	blocks := []vmm.Memory{{Name: "pc.ram", Size: 3 << 30}, {Name: "/objects/dimm1", Size: 2 << 30}}
	got, err := locate(views, blocks, extent.Of(extent.Extent{Off: 0x17ffff000, Len: 0x2000}))
	if err != nil || len(got) != 2 || got[0] != (vmm.Part{Block: "/objects/dimm1", Where: extent.Extent{Off: 2<<30 - 4096, Len: 4096}}) ||
		got[1] != (vmm.Part{Block: "pc.ram", Where: extent.Extent{Off: 2 << 30, Len: 4096}}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := locate(views, blocks, extent.Of(extent.Extent{Off: 0x9f000, Len: 0x2000})); !errors.Is(err, vmm.ErrNotRAM) {
		t.Error(err)
	}
}
