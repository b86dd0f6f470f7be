package render

import (
	"io"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name  string   `json:"name"`
	Count int      `json:"count"`
	Tags  []string `json:"tags"`
	Empty []string `json:"empty"`
}

func (s sample) WriteTable(w io.Writer) error {
	r := NewRows("NAME", "COUNT", "EMPTY")
	r.Add(s.Name, s.Count, "")
	return r.Write(w)
}

func TestWrite(t *testing.T) {
	doc := sample{Name: "007", Count: 3, Tags: []string{"true", "a<b", "two\nlines"}, Empty: []string{}}
	for _, c := range []struct {
		format Format
		want   string
	}{
		{Table, "NAME  COUNT  EMPTY\n007   3      -\n"},
		{JSON, "{\n  \"name\": \"007\",\n  \"count\": 3,\n  \"tags\": [\n    \"true\",\n    \"a<b\",\n    \"two\\nlines\"\n  ],\n  \"empty\": []\n}\n"},
		{YAML, "name: \"007\"\ncount: 3\ntags:\n  - \"true\"\n  - a<b\n  - |-\n    two\n    lines\nempty: []\n"},
	} {
		var b strings.Builder
		if err := Write(&b, c.format, doc); err != nil {
			t.Fatal(err)
		}
		if b.String() != c.want {
			t.Errorf("%s:\n%s\nwant:\n%s", c.format, b.String(), c.want)
		}
	}
}

func TestFormat_SetRefusesUnknownWords(t *testing.T) {
	var f Format
	for _, word := range FormatNames() {
		if err := f.Set(word); err != nil || f.String() != word {
			t.Errorf("Set(%q) = %v, is %s", word, err, f)
		}
	}
	if err := f.Set("xml"); err == nil || !strings.Contains(err.Error(), "table, json, yaml") {
		t.Errorf("Set(xml) = %v, want an error that lists the formats", err)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB",
		512 << 20: "512 MiB", 3 << 29: "1.5 GiB", 1<<64 - 1: "16 EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestMillisAndTime(t *testing.T) {
	for ms, want := range map[float64]string{0: "0", 2.345: "2.35", 45.67: "45.7", 1234.5: "1234"} {
		if got := Millis(ms); got != want {
			t.Errorf("Millis(%v) = %q, want %q", ms, got, want)
		}
	}
	if got := Time(time.Time{}); got != "" {
		t.Errorf("Time of the zero time = %q, want nothing", got)
	}
	if got := Time(time.Unix(1, 0)); got != "1970-01-01 00:00:01Z" {
		t.Errorf("Time = %q", got)
	}
}

func TestClean_TakesControlCharactersOut(t *testing.T) {
	if got := Clean("a\x1b[2Jb\nc\t"); got != "a [2Jb c" {
		t.Errorf("Clean = %q", got)
	}
}
