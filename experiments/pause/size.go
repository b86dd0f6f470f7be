package main

import (
	"fmt"
	"strconv"
	"strings"
)

// size is an amount of memory in bytes, a whole number of MiB.
type size uint64

const (
	mib size = 1 << 20
	gib size = 1 << 30

	// minSize holds the guests' system, the load and the ballast.
	minSize = 256 * mib
	maxSize = 64 * gib
)

// String is the size as parseSize reads it.
func (s size) String() string {
	if s%gib == 0 {
		return strconv.FormatUint(uint64(s/gib), 10) + "GiB"
	}
	return strconv.FormatUint(uint64(s/mib), 10) + "MiB"
}

func parseSize(text string) (size, error) {
	unit, digits := mib, strings.TrimSuffix(text, "MiB")
	if digits == text {
		unit, digits = gib, strings.TrimSuffix(text, "GiB")
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || digits == text {
		return 0, fmt.Errorf("size %q: want a number and MiB or GiB", text)
	}
	s := size(n) * unit
	if s < minSize || s > maxSize {
		return 0, fmt.Errorf("size %s: want %s to %s", text, minSize, maxSize)
	}
	return s, nil
}

// parseSizes reads a list, in which no size may stand twice.
func parseSizes(list string) ([]size, error) {
	var sizes []size
	seen := map[size]bool{}
	for text := range strings.SplitSeq(list, ",") {
		s, err := parseSize(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if seen[s] {
			return nil, fmt.Errorf("size %s stands twice", s)
		}
		seen[s] = true
		sizes = append(sizes, s)
	}
	return sizes, nil
}
