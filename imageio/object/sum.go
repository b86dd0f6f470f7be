package object

// Lanes is how many pages SumPages hashes at once, and is best given.
const Lanes = 16

// SumPages names whole pages of PageBytes each, as Sum does one by one: ids[i] is
// that of pages[i]. Where the processor can, it hashes sixteen pages at once, one in
// each lane of its vector registers, which is several times faster.
//
// Preconditions: ids is as long as pages, and nothing writes to the pages.
func SumPages(ids []ID, pages [][]byte) {
	for len(pages) > 0 {
		n := min(Lanes, len(pages))
		if lanes > 1 && n >= fewLanes {
			sumLanes(ids[:n], pages[:n])
		} else {
			for i, p := range pages[:n] {
				ids[i] = Sum(p[:PageBytes])
			}
		}
		ids, pages = ids[n:], pages[n:]
	}
}
