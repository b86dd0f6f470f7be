// Package extent is the algebra of byte ranges: union, difference,
// intersection, rounding to a page size. It knows nothing of memory, files or
// images, and builds on the standard library alone.
package extent

import "fmt"

// Extent is the half-open byte range [Off, Off+Len). A zero Len is empty.
type Extent struct{ Off, Len int64 }

// End is the first byte after e.
func (e Extent) End() int64 { return e.Off + e.Len }

// Empty says that e holds no byte.
func (e Extent) Empty() bool { return e.Len == 0 }

// Valid says that e has no negative part and that its end does not overflow.
// Extents that come from outside are checked with it before they meet a Set.
func (e Extent) Valid() bool { return e.Off >= 0 && e.Len >= 0 && e.Off+e.Len >= e.Off }

// Intersect returns what e and o have in common, empty if nothing.
func (e Extent) Intersect(o Extent) Extent {
	start, end := max(e.Off, o.Off), min(e.End(), o.End())
	if start >= end {
		return Extent{}
	}
	return Extent{Off: start, Len: end - start}
}

// RoundOut returns the smallest extent of whole pages that covers e.
//
// Preconditions: page is a power of two, and e ends at least a page below the
// largest int64.
func (e Extent) RoundOut(page int64) Extent {
	if e.Empty() {
		return Extent{Off: e.Off &^ (page - 1)}
	}
	start := e.Off &^ (page - 1)
	end := (e.End() + page - 1) &^ (page - 1)
	return Extent{Off: start, Len: end - start}
}

func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Off, e.End()) }
