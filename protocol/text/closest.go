package text

import "slices"

// Closest returns the word among the given ones that takes the fewest changes of single
// characters to become s, the last in order of those that take as few. It is empty when
// there is none.
func Closest(s string, words []string) string {
	best, fewest := "", 0
	for _, w := range slices.Sorted(slices.Values(words)) {
		if n := changes([]rune(s), []rune(w)); best == "" || n <= fewest {
			best, fewest = w, n
		}
	}
	return best
}

// Near is Closest for a word that somebody may have meant: empty if more than half of it
// would have to change.
func Near(s string, words []string) string {
	best := Closest(s, words)
	if 2*changes([]rune(s), []rune(best)) > max(len([]rune(s)), 1) {
		return ""
	}
	return best
}

// changes is the Levenshtein distance of a and b.
func changes(a, b []rune) int {
	row := make([]int, len(b)+1) // of the beginnings of b, for one beginning of a
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
