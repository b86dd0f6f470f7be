package qemu

import (
	"encoding/binary"
	"reflect"
	"testing"

	"fermata/vmm/uffd"
)

func TestParseRAMBlocks(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []ramBlock
	}{
		"7.2": {`              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
    /rom@etc/acpi/tables    4 KiB  0x0000000005140000 0x0000000000020000 0x0000000000200000
                            4 KiB  0x0000000006140000 0x0000000000020000 0x0000000000200000
`, []ramBlock{{name: "pc.ram", used: 64 * mib, total: 64 * mib}, {name: "/rom@etc/acpi/tables", offset: 0x5140000, used: 0x20000, total: 2 * mib}}},
		"10.0": {`              Block Name    PSize              Offset               Used              Total                HVA  RO
                 pc.bios    4 KiB  0x0000000004000000 0x0000000000040000 0x0000000000040000 0x00007f0bd0e00000  ro
`, []ramBlock{{name: "pc.bios", offset: 0x4000000, used: 0x40000, total: 0x40000, host: 0x7f0bd0e00000}}},
	} {
		got, err := parseRAMBlocks(tc.text)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
	for _, text := range []string{"", "Block Name\n pc.ram 4 KiB 0x0\n", "Block Name\n pc.ram 4 KiB 0x0 0x0 zero\n"} {
		if _, err := parseRAMBlocks(text); err == nil {
			t.Errorf("%q is no list of blocks", text)
		}
	}
}

// TestPlaceBlocks finds a block by its record, beside that of one of the same name that
// was unplugged, and a text that only looks like one.
func TestPlaceBlocks(t *testing.T) {
	ram := ramBlock{name: "ram0", used: 16 * mib, total: 16 * mib, host: 0x7f0000000000}
	rom := ramBlock{name: "card.rom", offset: 17 * mib, used: 1 * mib, total: 2 * mib}
	record := func(b ramBlock, host uint64) blockRecord {
		r := blockRecord{name: b.name, addr: host + 1}
		for i, word := range []uint64{host, 0, b.offset, b.used, b.total} {
			binary.LittleEndian.PutUint64(r.head[recordHead-60+8*i:], word)
		}
		return r
	}
	const at = 0x7f1000000000
	maps := []uffd.Mapping{
		{Range: uffd.Range{Addr: ram.host, Len: ram.total}, Readable: true},
		{Range: uffd.Range{Addr: at, Len: rom.total}, Readable: true},
	}
	listed := []ramBlock{{name: ram.name, used: ram.used, total: ram.total}, rom}
	records := []blockRecord{record(ram, ram.host), {name: rom.name}, record(rom, 0x7f2000000000), record(rom, at)}
	if err := placeBlocks(listed, ram, records, maps); err != nil {
		t.Fatal(err)
	}
	if listed[0].host != ram.host || listed[1].host != at || listed[1].record != at+1 {
		t.Errorf("placed %+v", listed)
	}
	if err := placeBlocks([]ramBlock{{name: ram.name, used: ram.used, total: ram.total}, rom}, ram, records[:3], maps); err == nil {
		t.Error("found a block that has no record")
	}
}
