package main

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSizes(t *testing.T) {
	got, err := parseSizes("256MiB, 1GiB,1536MiB")
	if want := []size{256 * mib, gib, 1536 * mib}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, s := range got {
		if again, err := parseSize(s.String()); err != nil || again != s {
			t.Errorf("%s is read as %s, %v", s, again, err)
		}
	}
	for text, want := range map[string]string{
		"":               "want a number",
		"256":            "want a number",
		"GiB":            "want a number",
		"-1GiB":          "want a number",
		"1 GiB":          "want a number",
		"5000000000GiB":  "want a number",
		"128MiB":         "want 256MiB to 64GiB",
		"65GiB":          "want 256MiB to 64GiB",
		"1GiB,1024MiB":   "twice",
		"256MiB,,512MiB": "want a number",
	} {
		if _, err := parseSizes(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}
