package object

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/damage"
)

var update = flag.Bool("update", false, "rewrite golden files")

func drawChildren(t *rapid.T, n int) []ID {
	ids := make([]ID, n)
	for i := range ids {
		if rapid.Bool().Draw(t, "zero") {
			continue
		}
		ids[i] = Sum([]byte{byte(rapid.Uint8().Draw(t, "content")), byte(i)})
	}
	return ids
}

func TestNode_RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]Kind{KindLeaf, KindBranch}).Draw(t, "kind")
		ids := drawChildren(t, rapid.IntRange(1, Fanout).Draw(t, "count"))
		ids[rapid.IntRange(0, len(ids)-1).Draw(t, "set")] = Sum([]byte("x"))
		data := AppendNode(nil, kind, ids)
		got, err := DecodeNode(nil, data, kind, len(ids))
		if err != nil || !slices.Equal(got, ids) {
			t.Fatalf("got %v, %v", got, err)
		}
		if len(data) > MaxNodeBytes {
			t.Fatalf("%d bytes", len(data))
		}
	})
}

func TestRoot_RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 40*BranchBytes).Draw(t, "size")
		want := Root{Size: size, Branches: drawChildren(t, BranchCount(size))}
		got, err := DecodeRoot(AppendRoot(nil, want))
		if err != nil || got.Size != want.Size || !slices.Equal(got.Branches, want.Branches) {
			t.Fatalf("got %v, %v", got, err)
		}
	})
}

func TestRoot_LargestImage(t *testing.T) {
	r := Root{Size: MaxImageBytes, Branches: make([]ID, BranchCount(MaxImageBytes))}
	for i := range r.Branches {
		r.Branches[i] = Sum([]byte{byte(i), byte(i >> 8)})
	}
	data := AppendRoot(nil, r)
	if len(data) != MaxNodeBytes {
		t.Fatalf("largest root has %d bytes, the limit says %d", len(data), MaxNodeBytes)
	}
	if _, err := DecodeRoot(data); err != nil {
		t.Fatal(err)
	}
}

func TestNode_CutOrStretchedIsDamage(t *testing.T) {
	data := AppendNode(nil, KindLeaf, []ID{Sum([]byte("a")), {}, Sum([]byte("b"))})
	for n := range data {
		if _, err := DecodeNode(nil, data[:n], KindLeaf, 3); !errors.Is(err, damage.ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for name, bad := range map[string][]byte{
		"a byte more":      append(bytes.Clone(data), 0),
		"bit beyond count": mutate(data, nodeHead, func(b byte) byte { return b | 8 }),
		"another kind":     mutate(data, 4, func(byte) byte { return byte(KindBranch) }),
		"another version":  mutate(data, 3, func(byte) byte { return 9 }),
		"a zero id":        append(bytes.Clone(data[:nodeHead+1]), make([]byte, 64)...),
		"all zeros":        {'f', 'm', 'n', version, byte(KindLeaf), 0, 3, 0, 0},
	} {
		if _, err := DecodeNode(nil, bad, KindLeaf, 3); !errors.Is(err, damage.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeNode(nil, data, KindLeaf, 4); !errors.Is(err, damage.ErrCorrupt) {
		t.Errorf("wrong number of children: %v", err)
	}
}

func mutate(data []byte, at int, f func(byte) byte) []byte {
	data = bytes.Clone(data)
	data[at] = f(data[at])
	return data
}

// TestNode_Format1 holds the bytes of format 1: a repository written today must
// be read for ever.
func TestNode_Format1(t *testing.T) {
	page := Sum(bytes.Repeat([]byte{0xaa}, PageBytes))
	leaf := AppendNode(nil, KindLeaf, []ID{{}, page, page, {}, {}, {}, {}, {}, page})
	branch := AppendNode(nil, KindBranch, []ID{Sum(leaf), {}})
	root := AppendRoot(nil, Root{Size: BranchBytes + 5, Branches: []ID{Sum(branch), {}}})
	for name, data := range map[string][]byte{"leaf": leaf, "branch": branch, "root": root} {
		golden := filepath.Join("testdata", "format1", name+".hex")
		if *update {
			if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, []byte(hex.EncodeToString(data)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(data); got != strings.TrimSpace(string(want)) {
			t.Errorf("%s of format 1 has changed:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func FuzzDecodeNode(f *testing.F) {
	f.Add(AppendNode(nil, KindLeaf, []ID{Sum([]byte("a")), {}, Sum([]byte("b"))}), 3)
	f.Add(AppendNode(nil, KindLeaf, []ID{Sum([]byte("a"))}), 1)
	f.Fuzz(func(t *testing.T, data []byte, want int) {
		ids, err := DecodeNode(nil, data, KindLeaf, want)
		if err != nil {
			return
		}
		if !bytes.Equal(AppendNode(nil, KindLeaf, ids), data) {
			t.Fatal("a leaf has two encodings")
		}
	})
}

func FuzzDecodeRoot(f *testing.F) {
	f.Add(AppendRoot(nil, Root{}))
	f.Add(AppendRoot(nil, Root{Size: 1, Branches: []ID{{}}}))
	f.Add(AppendRoot(nil, Root{Size: BranchBytes + 1, Branches: []ID{{}, Sum([]byte("b"))}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRoot(data)
		if err != nil {
			return
		}
		if !bytes.Equal(AppendRoot(nil, r), data) {
			t.Fatal("a root has two encodings")
		}
	})
}

func TestID_Text(t *testing.T) {
	id := Sum([]byte("x"))
	text, err := id.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back ID
	if err := back.UnmarshalText(text); err != nil || back != id {
		t.Fatalf("%v, %v", back, err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("parsed %q", bad)
		}
	}
}
