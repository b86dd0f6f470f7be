/* books.c counts arrivals exactly: one bit a sequence number. */
#include "canary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* MAX_SEQUENCE bounds the bitmap to 128 MiB: more than a month at 300 a second.
 * A number beyond it passed the hash and is still impossible. */
#define MAX_SEQUENCE (1ull << 30)

static void make_room(struct source *s, uint64_t words)
{
	uint64_t grown = s->seen_words ? s->seen_words : 64;

	while (grown < words)
		grown *= 2;
	if (grown == s->seen_words)
		return;
	s->seen = realloc(s->seen, grown * sizeof *s->seen);
	if (s->seen == NULL) {
		fprintf(stderr, "canary: no memory\n");
		exit(2);
	}
	memset(s->seen + s->seen_words, 0, (grown - s->seen_words) * sizeof *s->seen);
	s->seen_words = grown;
}

bool books_enter(struct source *s, uint64_t value, double now)
{
	if (value >= MAX_SEQUENCE)
		return false;
	make_room(s, value / 64 + 1);

	uint64_t bit = 1ull << (value % 64);
	if (s->seen[value / 64] & bit) {
		s->doubled++;
		return true;
	}
	s->seen[value / 64] |= bit;
	s->received++;
	if (value < s->next)
		s->reordered++;
	else
		s->next = value + 1;

	if (s->last_arrival > 0 && now - s->last_arrival > s->longest_gap)
		s->longest_gap = now - s->last_arrival;
	s->last_arrival = now;
	return true;
}

/* RECEIPTS is enough for some hours at the rates of our experiments. */
#define RECEIPTS (1u << 18)

/* Volatile, since nothing in the program reads them. Aligned, so that none lies across
 * two pages. */
static volatile _Alignas(4096) struct receipt receipts[RECEIPTS];
static uint32_t receipt_count;

void books_receipt(uint64_t hash)
{
	if (receipt_count == RECEIPTS)
		return;
	receipts[receipt_count].masked = hash ^ RECEIPT_MASK;
	receipts[receipt_count].magic = RECEIPT_MAGIC;
	receipt_count++;
}
