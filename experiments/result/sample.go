package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Sample is what was measured, one value a repetition, in the order of
// measurement. In a document it stands with its median and spread:
//
//	{"n": 3, "median": 2, "q1": 1.5, "q3": 2.5, "p99": 2.98, "min": 1, "max": 3, "values": [1, 3, 2]}
type Sample []float64

// Milliseconds makes a value of a sample in ms.
func Milliseconds(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// Quantile is the value below which the part p of the sample lies, interpolated
// linearly between neighbours (type 7 of Hyndman and Fan). It is NaN for an
// empty sample.
//
// Preconditions: 0 <= p <= 1.
func (s Sample) Quantile(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	at := p * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// Median is the quantile of one half.
func (s Sample) Median() float64 { return s.Quantile(0.5) }

// String is median and quartiles, for a table.
func (s Sample) String() string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s [%s, %s]", number(s.Median()), number(s.Quantile(0.25)), number(s.Quantile(0.75)))
}

// number writes a value with about three digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// sampleDocument is a Sample in JSON. All but the values follows from them and
// stands there for readers without a program.
type sampleDocument struct {
	N      int       `json:"n"`
	Median float64   `json:"median"`
	Q1     float64   `json:"q1"`
	Q3     float64   `json:"q3"`
	P99    float64   `json:"p99"` // of fewer than a hundred values, little less than the largest
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Values []float64 `json:"values"`
}

// MarshalJSON refuses an empty sample, which has no median.
func (s Sample) MarshalJSON() ([]byte, error) {
	if len(s) == 0 {
		return nil, errors.New("sample is empty")
	}
	return json.Marshal(sampleDocument{
		N: len(s), Median: round(s.Median()), Q1: round(s.Quantile(0.25)), Q3: round(s.Quantile(0.75)), P99: round(s.Quantile(0.99)),
		Min: slices.Min(s), Max: slices.Max(s), Values: s,
	})
}

// UnmarshalJSON takes the values. It refuses a field it does not know, and a
// count that is not theirs.
func (s *Sample) UnmarshalJSON(b []byte) error {
	var d sampleDocument
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return err
	}
	if d.N != len(d.Values) {
		return fmt.Errorf("sample of %d values says n = %d", len(d.Values), d.N)
	}
	*s = d.Values
	return nil
}
