/* pattern.c is the self-checking content of a page. */
#include "dirty.h"

#define MAGIC 0x464d44504147ull		/* "FMDPAG" */

/* STEP is 2^64 divided by the golden ratio, odd: multiples of it run through all
 * 64-bit words. */
#define STEP 0x9e3779b97f4a7c15ull

const char *const fault_names[] = { "none", "stale", "early", "misplaced", "torn" };

/* mix is the finalizer of splitmix64: each bit of x changes half of the result. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static uint64_t sum_of(uint64_t number, uint64_t generation)
{
	return mix(mix(number + STEP) + generation + MAGIC);
}

void page_write(struct page *p, uint64_t number, uint64_t generation)
{
	uint64_t word = sum_of(number, generation);

	p->magic = MAGIC;
	p->number = number;
	p->generation = generation;
	p->sum = word;
	for (size_t i = 0; i < sizeof p->words / sizeof *p->words; i++)
		p->words[i] = word += STEP;
}

/* whole tells whether *p is what its own head says. */
static bool whole(const struct page *p)
{
	uint64_t word = sum_of(p->number, p->generation);
	uint64_t wrong = (p->magic ^ MAGIC) | (p->sum ^ word);

	for (size_t i = 0; i < sizeof p->words / sizeof *p->words; i++)
		wrong |= p->words[i] ^ (word += STEP);
	return wrong == 0;
}

enum fault page_check(const struct page *p, uint64_t number, uint64_t generation)
{
	if (!whole(p))
		return FAULT_TORN;
	if (p->number != number)
		return FAULT_MISPLACED;
	if (p->generation < generation)
		return FAULT_STALE;
	return p->generation > generation ? FAULT_EARLY : FAULT_NONE;
}
