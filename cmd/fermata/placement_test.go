package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fermata/protocol/fault"
)

func TestParseOn(t *testing.T) {
	for _, c := range []struct {
		values []string
		guests map[string]string
		nodes  []string
		bad    bool
	}{
		{values: nil, guests: map[string]string{}},
		{values: []string{"a=n1"}, guests: map[string]string{"a": "n1"}},
		{values: []string{"a=n1, b=n2"}, guests: map[string]string{"a": "n1", "b": "n2"}},
		{values: []string{"n2,n1", "n3"}, guests: map[string]string{}, nodes: []string{"n2", "n1", "n3"}},
		{values: []string{"a=n1", "n1"}, guests: map[string]string{"a": "n1"}, nodes: []string{"n1"}},
		{values: []string{""}, bad: true},
		{values: []string{"a=n1,"}, bad: true},
		{values: []string{"=n1"}, bad: true},
		{values: []string{"a="}, bad: true},
		{values: []string{"a=b=c"}, bad: true},
		{values: []string{"a=n1", "a=n2"}, bad: true},
		{values: []string{"a=n1,a=n1"}, bad: true},
		{values: []string{"n1", "n1"}, bad: true},
	} {
		got, err := parseOn(c.values)
		if c.bad {
			if fault.ClassOf(err) != fault.Invalid {
				t.Errorf("%q: %v, want class invalid", c.values, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.values, err)
		}
		if diff := cmp.Diff(placement{guests: c.guests, nodes: c.nodes}, got, cmp.AllowUnexported(placement{})); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", c.values, diff)
		}
	}
}
