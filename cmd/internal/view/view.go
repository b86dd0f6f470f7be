// Package view gives the answers of the coordinator the form operators see.
//
// Its structs are the documents of -o json and -o yaml: their field names, in
// snake_case with units, and the words of their states are a stable interface.
// A field may be added; none is renamed or removed. Lists are sorted, so that
// two documents of the same state are the same bytes.
package view

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Instant is a point in time: RFC 3339 in UTC, or null when it is not known.
type Instant struct{ time.Time }

// MarshalJSON writes the instant.
func (i Instant) MarshalJSON() ([]byte, error) {
	if i.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(i.UTC().Format(time.RFC3339Nano))
}

func instant(unixNanos int64) Instant {
	if unixNanos == 0 {
		return Instant{}
	}
	return Instant{time.Unix(0, unixNanos)}
}

// millis turns the microseconds of the wire into milliseconds.
func millis(us uint64) float64 { return float64(us) / 1000 }

// word turns the name of a protobuf enum value into the word operators read:
// CLUSTER_STATE_RUNNING is running.
func word(prefix, name string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

// collect makes the views of messages, sorted by key. It never returns nil, so
// that an empty list is [] in JSON.
func collect[M, V any, K cmp.Ordered](messages []M, view func(M) V, key func(V) K) []V {
	views := make([]V, 0, len(messages))
	for _, m := range messages {
		views = append(views, view(m))
	}
	slices.SortStableFunc(views, func(a, b V) int { return cmp.Compare(key(a), key(b)) })
	return views
}

// list returns words, never nil.
func list(words []string) []string { return append([]string{}, words...) }
