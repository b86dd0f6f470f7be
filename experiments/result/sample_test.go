package result

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestSample_Quantile(t *testing.T) {
	for _, c := range []struct {
		sample Sample
		p      float64
		want   float64
	}{
		{Sample{5}, 0.5, 5},
		{Sample{5}, 1, 5},
		{Sample{3, 1, 2}, 0, 1},
		{Sample{3, 1, 2}, 0.5, 2},
		{Sample{3, 1, 2}, 1, 3},
		{Sample{4, 1, 3, 2}, 0.5, 2.5},
		{Sample{1, 2, 3, 4}, 0.25, 1.75},
		{Sample{1, 2, 3, 4}, 0.75, 3.25},
	} {
		before := slices.Clone(c.sample)
		if got := c.sample.Quantile(c.p); got != c.want {
			t.Errorf("quantile %v of %v: %v, want %v", c.p, c.sample, got, c.want)
		}
		if !slices.Equal(c.sample, before) {
			t.Errorf("the order of measurement %v became %v", before, c.sample)
		}
	}
	if got := (Sample{}).Median(); !math.IsNaN(got) {
		t.Errorf("median of nothing: %v", got)
	}
}

func TestSample_String(t *testing.T) {
	for _, c := range []struct {
		sample Sample
		want   string
	}{
		{nil, "-"},
		{Sample{1234.56}, "1235 [1235, 1235]"},
		{Sample{12.34, 13.34}, "12.8 [12.6, 13.1]"},
		{Sample{0.123}, "0.12 [0.12, 0.12]"},
	} {
		if got := c.sample.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestMilliseconds(t *testing.T) {
	if got := Milliseconds(1234567 * time.Nanosecond); got != 1.235 {
		t.Errorf("%v ms", got)
	}
}
