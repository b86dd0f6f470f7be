// Package text knows which text can be stored and shown on one line as it is. What a
// label or a path holds ends up on terminals, in logs and in JSON: a control character
// there moves the cursor, and one that turns the direction of writing (U+202E) shows
// another text than the one that is stored.
package text

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable reports whether r shows as what it is, in its place.
func Printable(r rune) bool {
	switch r {
	case unicode.ReplacementChar:
		return false
	case '\u200c', '\u200d': // the joiners of scripts and of composed signs
		return true
	}
	return unicode.IsGraphic(r)
}

// Shown is s with an escape for each character that cannot be shown, and for each byte
// that is not UTF-8.
func Shown(s string) string {
	if Check(s) == nil {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, width := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && width <= 1:
			fmt.Fprintf(&b, "\\x%02x", s[0])
		case Printable(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteToASCII(string(r))
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[width:]
	}
	return b.String()
}

// Check says why s is not one line of printable text in UTF-8.
func Check(s string) error {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, width := utf8.DecodeRuneInString(s[i:]); width <= 1 {
				return fmt.Errorf("byte %d (0x%02x) of %+q is not UTF-8", i+1, s[i], s)
			}
		}
		if !Printable(r) {
			return fmt.Errorf("character %U at byte %d of %+q cannot be shown", r, i+1, s)
		}
	}
	return nil
}
