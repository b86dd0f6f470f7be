package result

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// row is what an experiment's row looks like.
type row struct {
	MemoryBytes uint64 `json:"memory_bytes"`
	Method      string `json:"method"`
	PauseMS     Sample `json:"pause_ms"`
}

func sampleOfDocument() Document[row] {
	return Document[row]{
		Experiment: "pause",
		Machine:    Machine{CPUs: 2, MemoryBytes: 24 << 30, Kernel: "6.18.44", QEMU: "7.2.22", LoadAverage: 0.25},
		Commit:     "0123456789ab",
		Rows: []row{
			{MemoryBytes: 256 << 20, Method: "theirs", PauseMS: Sample{220.5, 331, 250}},
			{MemoryBytes: 256 << 20, Method: "ours", PauseMS: Sample{20.125}},
		},
		Goals: []Goal{
			AtMost("pause: ours over theirs", 1.0/3, 20.125/250),
			AtLeast("answers", 10, 9),
		},
	}
}

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; rewrite it with -update and read the change\ngot:\n%s", path, got)
	}
}

func TestDocument_Golden(t *testing.T) {
	var b bytes.Buffer
	if err := sampleOfDocument().Encode(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "document.json", b.Bytes())
	d, err := Decode[row](&b)
	if err != nil {
		t.Fatal(err)
	}
	if want := sampleOfDocument(); !reflect.DeepEqual(d, want) {
		t.Errorf("decoded %+v, encoded %+v", d, want)
	}
}

func TestDocument_Table(t *testing.T) {
	var b bytes.Buffer
	err := sampleOfDocument().WriteTable(&b, []Column[row]{
		{"METHOD", func(r row) string { return r.Method }},
		{"PAUSE ms", func(r row) string { return r.PauseMS.String() }},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "document.table", b.Bytes())
}

func TestDecode_Refuses(t *testing.T) {
	var b bytes.Buffer
	if err := sampleOfDocument().Encode(&b); err != nil {
		t.Fatal(err)
	}
	whole := b.String()
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "EOF"},
		{"an unknown field", strings.Replace(whole, `"commit"`, `"committ"`, 1), "unknown field"},
		{"an unknown field of a row", strings.Replace(whole, `"method"`, `"methods"`, 1), "unknown field"},
		{"an unknown field of a sample", strings.Replace(whole, `"q1"`, `"p25"`, 1), "unknown field"},
		{"a second document", whole + whole, "follows"},
		{"no rows", `{"experiment": "pause", "machine": {"cpus": 1, "kernel": "6"}, "commit": "unknown", "rows": []}`, "no rows"},
		{"no commit", strings.Replace(whole, "0123456789ab", "", 1), "no commit"},
		{"a wrong count", strings.Replace(whole, `"n": 3`, `"n": 4`, 1), "n = 4"},
	} {
		if _, err := Decode[row](strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestEncode_RefusesWhatWasNotMeasured(t *testing.T) {
	d := sampleOfDocument()
	d.Rows[0].PauseMS = nil
	if err := d.Encode(&bytes.Buffer{}); err == nil {
		t.Error("encoded an empty sample")
	}
	d = sampleOfDocument()
	d.Goals[0] = AtMost("nothing over nothing", 1, math.NaN())
	if err := d.Encode(&bytes.Buffer{}); err == nil || d.Goals[0].Met {
		t.Errorf("a goal without a value: met %t, encoded with %v", d.Goals[0].Met, err)
	}
}

func TestGoal(t *testing.T) {
	for _, c := range []struct {
		goal Goal
		met  bool
	}{
		{AtMost("a", 1, 1), true}, {AtMost("a", 1, 1.0001), false},
		{AtLeast("a", 3, 3), true}, {AtLeast("a", 3, 2.9), false},
	} {
		if c.goal.Met != c.met {
			t.Errorf("%+v, want met %t", c.goal, c.met)
		}
	}
}
