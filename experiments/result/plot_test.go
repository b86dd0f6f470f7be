package result

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func panel() Panel {
	return Panel{
		Title: "pause of one guest", Unit: "ms", Groups: []string{"256 MiB", "1 GiB"},
		Series: []Series{
			{Name: "theirs", Samples: []Sample{{220, 331, 250}, {900, 870, 1200}}},
			{Name: "ours", Samples: []Sample{{21, 19, 20}, {}}},
		},
	}
}

func TestWriteSVG(t *testing.T) {
	var first, again bytes.Buffer
	if err := WriteSVG(&first, panel(), panel()); err != nil {
		t.Fatal(err)
	}
	if err := WriteSVG(&again, panel(), panel()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), again.Bytes()) {
		t.Error("two drawings of the same panels differ")
	}
	var texts []string
	for dec := xml.NewDecoder(&first); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		if text, ok := token.(xml.CharData); ok {
			texts = append(texts, string(text))
		}
	}
	for _, want := range []string{"pause of one guest", "ms", "256 MiB", "1 GiB", "theirs", "ours", "100", "1000"} {
		if !strings.Contains(strings.Join(texts, "\n"), want) {
			t.Errorf("the drawing does not say %q", want)
		}
	}
}

func TestWriteSVG_Refuses(t *testing.T) {
	for name, change := range map[string]func(*Panel){
		"zero":              func(p *Panel) { p.Series[0].Samples[0][1] = 0 },
		"no number":         func(p *Panel) { p.Series[0].Samples[0][1] = math.NaN() },
		"infinity":          func(p *Panel) { p.Series[0].Samples[0][1] = math.Inf(1) },
		"missing group":     func(p *Panel) { p.Series[0].Samples = p.Series[0].Samples[:1] },
		"no group":          func(p *Panel) { p.Groups = nil },
		"no values":         func(p *Panel) { p.Series = []Series{{Name: "theirs", Samples: make([]Sample, 2)}} },
		"too many to tell":  func(p *Panel) { p.Series = make([]Series, len(colours)+1) },
		"no series at all":  func(p *Panel) { p.Series = nil },
		"negative duration": func(p *Panel) { p.Series[1].Samples[0][0] = -1 },
	} {
		p := panel()
		change(&p)
		if err := WriteSVG(io.Discard, p); err == nil {
			t.Errorf("%s: drawn", name)
		}
	}
	if err := WriteSVG(io.Discard); err == nil {
		t.Error("no panel: drawn")
	}
}
