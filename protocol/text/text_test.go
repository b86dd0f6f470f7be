package text_test

import (
	"strings"
	"testing"

	"fermata/protocol/text"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct{ s, want string }{ // want: part of the refusal; empty: accepted
		{"", ""},
		{"before-upgrade", ""},
		{"vor dem Umbau, été, 変更前, до", ""},
		{"שלום", ""},
		{"family \U0001F468\u200d\U0001F469", ""},
		{"no\u00a0break", ""},
		{"a\xffb", "byte 2 (0xff)"},
		{"a\ufffdb", "U+FFFD"},
		{"good\u202edab", "U+202E at byte 5"},
		{"\u2066x", "U+2066"},
		{"bell\x07", "U+0007"},
		{"two\nlines", "U+000A"},
		{"\u2028", "U+2028"},
		{"\u009b2J", "U+009B"},
	} {
		err := text.Check(c.s)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+q: error %v, want %q", c.s, err, c.want)
		}
		if err != nil && text.Check(err.Error()) != nil {
			t.Errorf("%+q: the refusal itself cannot be shown: %q", c.s, err)
		}
	}
}

func TestShown(t *testing.T) {
	for s, want := range map[string]string{
		"plain été":           "plain été",
		"a\xff\u202eb\x1b[2J": `a\xff\u202eb\x1b[2J`,
		"tab\tend":            `tab\tend`,
	} {
		if got := text.Shown(s); got != want {
			t.Errorf("Shown(%+q) = %q, want %q", s, got, want)
		}
	}
}

func TestClosest(t *testing.T) {
	machines := []string{"pc-i440fx-7.2", "pc-q35-7.1", "pc-q35-7.2", "pc-q35-6.2"}
	for _, c := range []struct{ s, closest, near string }{
		{"pc-q35-7.2", "pc-q35-7.2", "pc-q35-7.2"},
		{"pc-q35-9.2", "pc-q35-7.2", "pc-q35-7.2"},
		{"pc-q35-7.3", "pc-q35-7.2", "pc-q35-7.2"},
		{"pc-i440fx-8.2", "pc-i440fx-7.2", "pc-i440fx-7.2"},
		{"x", "pc-q35-7.2", ""},
	} {
		if got := text.Closest(c.s, machines); got != c.closest {
			t.Errorf("Closest(%s) = %q, want %q", c.s, got, c.closest)
		}
		if got := text.Near(c.s, machines); got != c.near {
			t.Errorf("Near(%s) = %q, want %q", c.s, got, c.near)
		}
	}
	if got := text.Closest("a", nil) + text.Near("a", nil); got != "" {
		t.Errorf("of no words: %q", got)
	}
}
