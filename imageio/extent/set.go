package extent

import (
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"
)

// Set is a set of bytes, kept as sorted extents. The zero value is empty.
//
// Invariant: the extents are valid, not empty, ascending, and neither overlap
// nor touch, so equal sets have equal extents.
//
// Concurrency: like a map; readers may run together, a writer runs alone.
type Set struct{ list []Extent }

// Of returns the set of all bytes of es.
func Of(es ...Extent) Set {
	var s Set
	for _, e := range es {
		s.Add(e)
	}
	return s
}

// Add puts the bytes of e into s.
//
// Preconditions: e is valid.
func (s *Set) Add(e Extent) {
	mustBeValid(e)
	if e.Empty() {
		return
	}
	if n := len(s.list); n == 0 || s.list[n-1].End() < e.Off { // growing upwards is the common case
		s.list = append(s.list, e)
		return
	}
	// [i,j) are the extents that overlap or touch e.
	i := sort.Search(len(s.list), func(k int) bool { return s.list[k].End() >= e.Off })
	j := i + sort.Search(len(s.list)-i, func(k int) bool { return s.list[i+k].Off > e.End() })
	if i < j {
		start := min(e.Off, s.list[i].Off)
		end := max(e.End(), s.list[j-1].End())
		e = Extent{Off: start, Len: end - start}
	}
	s.list = slices.Replace(s.list, i, j, e)
}

// Remove takes the bytes of e out of s.
//
// Preconditions: e is valid.
func (s *Set) Remove(e Extent) {
	mustBeValid(e)
	i, j := s.overlapping(e)
	if i == j {
		return
	}
	var keep []Extent
	if first := s.list[i]; first.Off < e.Off {
		keep = append(keep, Extent{Off: first.Off, Len: e.Off - first.Off})
	}
	if last := s.list[j-1]; last.End() > e.End() {
		keep = append(keep, Extent{Off: e.End(), Len: last.End() - e.End()})
	}
	s.list = slices.Replace(s.list, i, j, keep...)
}

// Union returns the bytes that are in s or in o.
func (s Set) Union(o Set) Set {
	u := s.Clone()
	for _, e := range o.list {
		u.Add(e)
	}
	return u
}

// Subtract returns the bytes of s that are not in o.
func (s Set) Subtract(o Set) Set {
	d := s.Clone()
	for _, e := range o.list {
		d.Remove(e)
	}
	return d
}

// Within returns the bytes of s that lie in e.
func (s Set) Within(e Extent) Set {
	i, j := s.overlapping(e)
	if i == j {
		return Set{}
	}
	w := Set{list: slices.Clone(s.list[i:j])}
	for k := range w.list {
		w.list[k] = w.list[k].Intersect(e)
	}
	return w
}

// Contains says that every byte of e is in s. The empty extent always is.
func (s Set) Contains(e Extent) bool {
	if e.Empty() {
		return true
	}
	i, j := s.overlapping(e)
	return j-i == 1 && s.list[i].Off <= e.Off && s.list[i].End() >= e.End()
}

// Overlaps says that some byte of e is in s.
func (s Set) Overlaps(e Extent) bool {
	i, j := s.overlapping(e)
	return i < j
}

// RoundOut returns the smallest set of whole pages that covers s.
//
// Preconditions: as for Extent.RoundOut.
func (s Set) RoundOut(page int64) Set {
	var r Set
	for _, e := range s.list {
		r.Add(e.RoundOut(page))
	}
	return r
}

// All yields the extents of s in ascending order.
func (s Set) All() iter.Seq[Extent] { return slices.Values(s.list) }

// Count is the number of extents.
func (s Set) Count() int { return len(s.list) }

// Bytes is the number of bytes in s.
func (s Set) Bytes() int64 {
	var n int64
	for _, e := range s.list {
		n += e.Len
	}
	return n
}

// Empty says that s holds no byte.
func (s Set) Empty() bool { return len(s.list) == 0 }

// Clone returns a set that shares nothing with s.
func (s Set) Clone() Set { return Set{list: slices.Clone(s.list)} }

// Equal says that s and o hold the same bytes.
func (s Set) Equal(o Set) bool { return slices.Equal(s.list, o.list) }

func (s Set) String() string {
	parts := make([]string, len(s.list))
	for i, e := range s.list {
		parts[i] = e.String()
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// overlapping returns the range of extents that share a byte with e.
func (s Set) overlapping(e Extent) (i, j int) {
	if e.Empty() {
		return 0, 0
	}
	i = sort.Search(len(s.list), func(k int) bool { return s.list[k].End() > e.Off })
	j = i + sort.Search(len(s.list)-i, func(k int) bool { return s.list[i+k].Off >= e.End() })
	return i, j
}

func mustBeValid(e Extent) {
	if !e.Valid() {
		panic(fmt.Sprintf("extent: invalid range, offset %d length %d", e.Off, e.Len))
	}
}
