package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/object"
)

var update = flag.Bool("update", false, "rewrite golden files")

func sample() *Manifest {
	return &Manifest{
		Cluster: "web", Epoch: 7, CreatedUnixNS: 1_000_000_007, Label: "before <upgrade>", Spec: []byte("guests: []\n"),
		FenceToken: 42, ChannelsRecorded: true, Networks: json.RawMessage(`{"outside":"allow"}`),
		Guests: []Guest{{
			Name: "a", Node: "n1", Machine: json.RawMessage(`{"cpu":"qemu64","args":"a<b"}`), Report: json.RawMessage(`{"pause_us":2300}`),
			Objects: []Object{
				{Kind: KindMemory, Name: "ram0", ID: object.Sum([]byte("ram")), SizeBytes: 2 << 30},
				{Kind: KindChannel, Name: "eth0", ID: object.Sum([]byte("frames")), SizeBytes: 1500, Count: 3},
			},
		}},
		Packs:  []string{strings.Repeat("0a", 16), strings.Repeat("0b", 16)},
		Stats:  Stats{RawBytes: 1 << 62, NonZeroBytes: 4, NewBytes: 3, StoredBytes: 2, TimingsUS: map[string]uint64{"resumed": 5, "durable": 9}},
		Report: json.RawMessage(`[1,2]`),
	}
}

func encoded(t testing.TB, m *Manifest) []byte {
	t.Helper()
	data, err := Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestManifest_RoundTrip(t *testing.T) {
	data := encoded(t, sample())
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Fatal(diff)
	}
	if IsTombstone(data) {
		t.Fatal("a manifest looks like a tombstone")
	}
}

func TestManifest_WhiteSpaceInOpaqueFieldsDoesNotMatter(t *testing.T) {
	m := sample()
	m.Networks = json.RawMessage("{\n  \"outside\": \"allow\"\n}")
	if !bytes.Equal(encoded(t, m), encoded(t, sample())) {
		t.Fatal("a repeated commit would not be recognised")
	}
}

func TestManifest_RefusesWhatCannotBeRight(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"no cluster":       func(m *Manifest) { m.Cluster = "" },
		"path in cluster":  func(m *Manifest) { m.Cluster = "../web" },
		"upper case":       func(m *Manifest) { m.Cluster = "Web" },
		"long cluster":     func(m *Manifest) { m.Cluster = strings.Repeat("a", 64) },
		"guest twice":      func(m *Manifest) { m.Guests = append(m.Guests, m.Guests[0]) },
		"nameless guest":   func(m *Manifest) { m.Guests[0].Name = "" },
		"object twice":     func(m *Manifest) { g := &m.Guests[0]; g.Objects = append(g.Objects, g.Objects[0]) },
		"unknown kind":     func(m *Manifest) { m.Guests[0].Objects[0].Kind = "tape" },
		"object has no id": func(m *Manifest) { m.Guests[0].Objects[0].ID = object.ID{} },
		"too large":        func(m *Manifest) { m.Guests[0].Objects[0].SizeBytes = 1 << 60 },
		"pack twice":       func(m *Manifest) { m.Packs[1] = m.Packs[0] },
		"pack is a path":   func(m *Manifest) { m.Packs[0] = "../../../../etc/passwd0000000000" },
		"long label":       func(m *Manifest) { m.Label = strings.Repeat("x", 257) },
		"not JSON":         func(m *Manifest) { m.Guests[0].Machine = json.RawMessage("{") },
	} {
		m := sample()
		spoil(m)
		if _, err := Encode(m); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestManifest_FlippedByteIsDamage(t *testing.T) {
	data := encoded(t, sample())
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= byte(1 + rng.IntN(255))
		if _, err := Decode(bad); !errors.Is(err, damage.ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

func TestManifest_UnknownFieldIsIgnored(t *testing.T) {
	data, err := manifestKind().Encode([]byte(`{"cluster":"web","epoch":1,"guests":[],"packs":[],"colour":"red"}`))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := Decode(data); err != nil || m.Cluster != "web" {
		t.Fatalf("%+v, %v", m, err)
	}
}

func TestManifest_NewerVersionIsRefused(t *testing.T) {
	k := manifestKind()
	k.Version++
	data, err := k.Encode([]byte("whatever it may be"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data); !errors.Is(err, frame.ErrNewerFormat) {
		t.Fatal(err)
	}
}

func TestTombstone_RoundTrip(t *testing.T) {
	want := Tombstone{Cluster: "web", Epoch: 9, Verdict: Aborted, Reason: "n2 is silent"}
	data, err := EncodeTombstone(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeTombstone(data)
	if err != nil || got != want || !IsTombstone(data) {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestTombstone_AnyReasonWill(t *testing.T) {
	for _, reason := range []string{strings.Repeat("ü", 5000), "\xff\xfe", "a\x00b"} {
		if _, err := EncodeTombstone(Tombstone{Cluster: "web", Verdict: Aborted, Reason: reason}); err != nil {
			t.Errorf("reason %.10q: %v", reason, err)
		}
	}
}

// TestRecords_Format1 reads records as format 1 wrote them, and writes them
// the same.
func TestRecords_Format1(t *testing.T) {
	tomb, err := EncodeTombstone(Tombstone{Cluster: "web", Epoch: 8, Verdict: Deleted, Reason: "retention"})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"manifest": encoded(t, sample()), "tombstone": tomb} {
		golden := filepath.Join("testdata", "format1", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, want) {
			t.Errorf("%s of format 1 has changed:\n%q\nwant\n%q", name, data, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, err := manifestKind().Decode(encoded(f, sample()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"cluster":"a","guests":null,"packs":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		// Framed here, as the digest would stop nearly every mutation.
		data, err := manifestKind().Encode(body)
		if err != nil {
			return
		}
		m, err := Decode(data)
		if err != nil {
			return
		}
		if _, err := Encode(m); err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
	})
}
