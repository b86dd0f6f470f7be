/* dirty rewrites memory for ever and checks it: the guest of captures.
 *
 *	dirty [-m MIB] [-r MIB_PER_SECOND] [-t THREADS] [-b BALLAST_MIB] [-c] [-1]
 *
 * Each page holds its number, a generation, and content derived from both in
 * every word. Before a page is rewritten it must hold exactly what was written to
 * it last: a page that went back or forward in time, is torn or another's, counts
 * as bad. Threads own pages of their own. Rate 0 is as fast as it goes; a rate is
 * kept in slices of a millisecond. Ballast is random bytes, written once and
 * checked in turns.
 *
 * -1 ends after the first line; -c damages a page first, to show that it is found.
 */
#include "line.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define MIB (1024 * 1024)
#define MAX_THREADS 16

struct worker {
	uint64_t *pages;
	size_t first, count; /* pages of this worker */
	uint32_t *generations;
	double rate; /* pages a second; 0: no limit */
	_Atomic uint64_t written, bad;
};

/* word is what word i of a page holds in a generation (SplitMix64's mixer). */
static uint64_t word(uint64_t page, uint64_t generation, uint64_t i)
{
	uint64_t z = page * 0x9e3779b97f4a7c15ull + generation * 0xd1342543de82ef95ull + i;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static int page_is(const uint64_t *p, uint64_t page, uint64_t generation)
{
	if (p[0] != page || p[1] != generation)
		return 0;
	for (size_t i = 2; i < PAGE_WORDS; i++)
		if (p[i] != word(page, generation, i))
			return 0;
	return 1;
}

static void page_write(uint64_t *p, uint64_t page, uint64_t generation)
{
	p[0] = page;
	p[1] = generation;
	for (size_t i = 2; i < PAGE_WORDS; i++)
		p[i] = word(page, generation, i);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct timespec nap = {0, 1000000};
	double begun = uptime_seconds();
	uint64_t done = 0;

	for (;;) {
		for (size_t n = 0; n < w->count; n++) {
			size_t page = w->first + n;
			uint64_t *p = w->pages + page * PAGE_WORDS;

			if (!page_is(p, page, w->generations[page]))
				w->bad++;
			page_write(p, page, ++w->generations[page]);
			w->written++;
			done++;
			while (w->rate > 0 && (double)done > (uptime_seconds() - begun) * w->rate)
				nanosleep(&nap, NULL);
		}
	}
	return NULL;
}

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED) {
		perror("dirty: memory");
		exit(2);
	}
	return p;
}

int main(int argc, char **argv)
{
	long mib = 16, threads = 1, ballast_mib = 0;
	double rate = 0;
	int once = 0, corrupt = 0, option;

	while ((option = getopt(argc, argv, "m:r:t:b:c1")) != -1) {
		switch (option) {
		case 'm': mib = atol(optarg); break;
		case 'r': rate = atof(optarg); break;
		case 't': threads = atol(optarg); break;
		case 'b': ballast_mib = atol(optarg); break;
		case 'c': corrupt = 1; break;
		case '1': once = 1; break;
		default: return 2;
		}
	}
	if (mib < 1 || rate < 0 || threads < 1 || threads > MAX_THREADS || ballast_mib < 0) {
		fprintf(stderr, "dirty: arguments out of range\n");
		return 2;
	}
	size_t count = (size_t)mib * (MIB / PAGE_BYTES);
	size_t ballast_count = (size_t)ballast_mib * (MIB / PAGE_BYTES);
	uint64_t *pages = map(count * PAGE_BYTES);
	uint32_t *generations = map(count * sizeof *generations);
	uint64_t *ballast = ballast_count ? map(ballast_count * PAGE_BYTES) : NULL;

	for (size_t i = 0; i < count; i++)
		page_write(pages + i * PAGE_WORDS, i, 0);
	for (size_t i = 0; i < ballast_count; i++)
		page_write(ballast + i * PAGE_WORDS, i, UINT32_MAX);
	if (corrupt)
		pages[PAGE_WORDS / 2] ^= 1;

	static struct worker workers[MAX_THREADS];
	for (long t = 0; t < threads; t++) {
		struct worker *w = &workers[t];
		pthread_t thread;

		w->pages = pages;
		w->generations = generations;
		w->first = count * t / threads;
		w->count = count * (t + 1) / threads - w->first;
		w->rate = rate * (MIB / PAGE_BYTES) / threads;
		if ((errno = pthread_create(&thread, NULL, work, w)) != 0) {
			perror("dirty: thread");
			return 2;
		}
	}
	line_say("DIRTY-START mib=%ld rate=%.3f threads=%ld ballast-mib=%ld uptime=%.3f", mib, rate, threads,
		 ballast_mib, uptime_seconds());
	uint64_t before = 0, ballast_bad = 0;
	size_t next = 0; /* page of the ballast to check */
	double last = uptime_seconds();
	for (;;) {
		struct timespec second = {1, 0};
		uint64_t written = 0, bad = 0;

		while (nanosleep(&second, &second) != 0)
			;
		/* A sixteenth each second: found within seconds, and cheap. */
		for (size_t n = ballast_count / 16; n > 0; n--, next = (next + 1) % ballast_count)
			ballast_bad += !page_is(ballast + next * PAGE_WORDS, next, UINT32_MAX);
		for (long t = 0; t < threads; t++) {
			written += workers[t].written;
			bad += workers[t].bad;
		}
		double now = uptime_seconds();
		line_say("DIRTY pages=%zu written=%llu rate=%.3f bad=%llu uptime=%.3f", count, (unsigned long long)written,
			 (double)(written - before) * PAGE_BYTES / MIB / (now - last),
			 (unsigned long long)(bad + ballast_bad), now);
		before = written;
		last = now;
		if (once)
			return 0;
	}
}
