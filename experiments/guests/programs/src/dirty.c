/* dirty rewrites memory, page by page, and knows what each page must hold: what
 * a checkpoint or a restart tore, lost, mixed up or brought back is found when
 * the page's turn comes.
 *
 *	dirty [-o CONSOLE] [-e MS] [-t SECONDS] [-d DEVICE] [-b MIB] MIB RATE [THREADS]
 *
 * MIB of memory are rewritten at RATE MiB a second, or as fast as possible when
 * RATE is 0, by THREADS threads with a part of the memory each. A round visits
 * every page once, in an order of its own that is not that of addresses, and
 * before it rewrites a page checks that it holds what the round before wrote.
 *
 * Every MS (1000) it writes a DIRTY line about the time since the last one, after
 * SECONDS (0 = never) DIRTY-END about all of it, and ends; for each bad page, up to
 * MAX_TOLD, a DIRTY-BAD line. A bad page is counted once, rewritten, and good again. With DEVICE a disk is kept busy, too
 * (records.c). With -b MIB, further memory is filled once and then only looked at,
 * a page for every BALLAST_EVERY that are rewritten: what no program writes.
 */
#include "dirty.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 64

/* SLICE is how often a thread with a rate looks at the clock: a millisecond, so
 * that the rate is one within any pause that matters. */
#define SLICE 0.001

/* MAX_BACKLOG bounds what is made up for after the guest had no processor. More
 * would be a burst, which is not the load that was asked for. */
#define MAX_BACKLOG 0.010

/* UNPACED is how many pages a thread without a rate writes between two looks at
 * the clock, whose reading may cost more than a page under emulation. */
#define UNPACED 64

#define MAX_TOLD 16

/* BALLAST_EVERY makes looking at ballast a small part of the work. */
#define BALLAST_EVERY 16

struct part {
	struct page *pages;
	uint64_t first, count;		/* numbers of its pages */
	const struct page *ballast;	/* memory that stays generation 0 */
	uint64_t ballast_first, ballast_count;
	double rate;			/* pages a second; 0 = as fast as possible */
	_Atomic uint64_t written;	/* pages, since the start */
	_Atomic uint64_t bad;		/* of them not what they should have been */
	_Atomic uint64_t gap_ns;	/* longest time between two slices since it was last asked for */

	/* the thread's own */
	uint64_t round;			/* the generation that is being written; the fill was 0 */
	uint64_t done;			/* pages of this round */
	uint64_t at, stride;		/* next page below count, and the one after it */
	uint64_t ballast_at, since_ballast;
};

/* instant is how far the program was when. */
struct instant {
	double uptime;
	uint64_t written;	/* pages */
};

static struct part parts[MAX_THREADS];
static int threads = 1;
static struct records records = { .fd = -1 };
static atomic_bool over;
static atomic_int told;

static uint64_t divisor(uint64_t a, uint64_t b)
{
	while (b != 0) {
		uint64_t rest = a % b;
		a = b;
		b = rest;
	}
	return a;
}

/* next_round chooses where a round begins and its stride, which has no divisor in
 * common with the number of pages: so the round meets each exactly once. */
static void next_round(struct part *p)
{
	p->round++;
	p->done = 0;
	p->at = p->round * 7919 % p->count;
	p->stride = (p->count * 5 / 8 + p->round * 31) % p->count | 1;
	while (divisor(p->stride, p->count) != 1)
		p->stride += 2;
}

/* expect counts and tells when a page is not number of generation. */
static void expect(struct part *p, const struct page *page, uint64_t number, uint64_t generation)
{
	enum fault fault = page_check(page, number, generation);

	if (fault == FAULT_NONE)
		return;
	atomic_fetch_add(&p->bad, 1);
	if (atomic_fetch_add(&told, 1) >= MAX_TOLD)
		return;
	line_say("DIRTY-BAD page=%llu generation=%llu fault=%s found-page=%llu found-generation=%llu",
		 (unsigned long long)number, (unsigned long long)generation, fault_names[fault],
		 (unsigned long long)page->number, (unsigned long long)page->generation);
}

static void look_at_ballast(struct part *p)
{
	if (p->ballast_count == 0 || ++p->since_ballast < BALLAST_EVERY)
		return;
	p->since_ballast = 0;
	expect(p, &p->ballast[p->ballast_at], p->ballast_first + p->ballast_at, 0);
	p->ballast_at = (p->ballast_at + 1) % p->ballast_count;
}

static void rewrite(struct part *p, uint64_t pages)
{
	for (uint64_t n = 0; n < pages; n++) {
		if (p->done == p->count)
			next_round(p);
		struct page *page = &p->pages[p->at];
		uint64_t number = p->first + p->at;

		look_at_ballast(p);
		expect(p, page, number, p->round - 1);
		page_write(page, number, p->round);
		p->at = (p->at + p->stride) % p->count;
		p->done++;
	}
	atomic_fetch_add(&p->written, pages);
}

/* note_gap keeps the longest. */
static void note_gap(struct part *p, double seconds)
{
	uint64_t ns = (uint64_t)(seconds * 1e9), most = atomic_load(&p->gap_ns);

	while (ns > most && !atomic_compare_exchange_weak(&p->gap_ns, &most, ns))
		;
}

static void *run(void *argument)
{
	static const struct timespec slice = { 0, (long)(SLICE * 1e9) };
	struct part *p = argument;
	double before = uptime_seconds(), owed = 0;

	while (!atomic_load(&over)) {
		if (p->rate > 0)
			nanosleep(&slice, NULL);
		double now = uptime_seconds();
		note_gap(p, now - before);
		if (p->rate > 0) {
			owed += (now - before) * p->rate;
			/* a slow machine, or a page in many slices: at least one page stays owed */
			double most = MAX_BACKLOG * p->rate > 1 ? MAX_BACKLOG * p->rate : 1;
			if (owed > most)
				owed = most;
			rewrite(p, (uint64_t)owed);
			owed -= (double)(uint64_t)owed;
		} else {
			rewrite(p, UNPACED);
		}
		before = now;
	}
	return NULL;
}

static void *run_records(void *argument)
{
	(void)argument;
	while (!atomic_load(&over))
		records_step(&records);
	return NULL;
}

static double positive(const char *text, const char *what, double least)
{
	char *end;
	double v = strtod(text, &end);

	if (end == text || *end != '\0' || !(v >= least)) {
		fprintf(stderr, "dirty: %s: %s\n", what, text);
		exit(2);
	}
	return v;
}

/* lay_out makes the memory, behind it ballast_mib of ballast, and fills both
 * with generation 0. */
static uint64_t lay_out(uint64_t mib, uint64_t ballast_mib, double rate)
{
	uint64_t count = mib << 20 >> 12, ballast = ballast_mib << 20 >> 12;
	struct page *pages = mmap(NULL, (mib + ballast_mib) << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED) {
		fprintf(stderr, "dirty: no memory for %llu MiB\n", (unsigned long long)(mib + ballast_mib));
		exit(2);
	}
	for (uint64_t i = 0; i < count + ballast; i++)
		page_write(&pages[i], i, 0);
	line_say("DIRTY-START pages=%llu ballast=%llu threads=%d rate=%.1f address=%p uptime=%.3f",
		 (unsigned long long)count, (unsigned long long)ballast, threads, rate, (void *)pages, uptime_seconds());
	for (int i = 0; i < threads; i++) {
		struct part *p = &parts[i];

		p->first = count * (uint64_t)i / (uint64_t)threads;
		p->count = count * (uint64_t)(i + 1) / (uint64_t)threads - p->first;
		p->pages = pages + p->first;
		p->ballast_first = count + ballast * (uint64_t)i / (uint64_t)threads;
		p->ballast_count = count + ballast * (uint64_t)(i + 1) / (uint64_t)threads - p->ballast_first;
		p->ballast = pages + p->ballast_first;
		p->rate = rate * 256 / threads;
		next_round(p);
	}
	return count;
}

/* report writes one line: how much is written, and how fast since *last, which
 * becomes now. */
static void report(const char *kind, uint64_t pages, struct instant *last)
{
	uint64_t written = 0, bad = 0, gap = 0;
	double now = uptime_seconds();

	for (int i = 0; i < threads; i++) {
		uint64_t part_gap = atomic_exchange(&parts[i].gap_ns, 0);

		written += atomic_load(&parts[i].written);
		bad += atomic_load(&parts[i].bad);
		gap = part_gap > gap ? part_gap : gap;
	}
	line_say("%s pages=%llu generation=%llu written=%llu rate=%.2f gap=%.4f bad=%llu records=%llu bad-records=%llu uptime=%.3f",
		 kind, (unsigned long long)pages, (unsigned long long)(written / pages), (unsigned long long)written,
		 now > last->uptime ? (double)(written - last->written) / 256 / (now - last->uptime) : 0, (double)gap / 1e9,
		 (unsigned long long)bad, (unsigned long long)records.written, (unsigned long long)records.bad, now);
	*last = (struct instant){ .uptime = now, .written = written };
}

static void must_start(pthread_t *thread, void *(*body)(void *), void *argument)
{
	if (pthread_create(thread, NULL, body, argument) != 0) {
		fprintf(stderr, "dirty: cannot start a thread\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	const char *device = NULL;
	double every = 1, seconds = 0, ballast_mib = 0;
	pthread_t running[MAX_THREADS], disk;
	int option;

	while ((option = getopt(argc, argv, "o:e:t:d:b:")) != -1) {
		switch (option) {
		case 'o': line_open(optarg); break;
		case 'e': every = positive(optarg, "interval", 1) / 1e3; break;
		case 't': seconds = positive(optarg, "seconds", 0); break;
		case 'd': device = optarg; break;
		case 'b': ballast_mib = positive(optarg, "ballast MiB", 0); break;
		default: optind = argc + 1;
		}
	}
	if (argc - optind != 2 && argc - optind != 3) {
		fprintf(stderr, "usage: dirty [-o CONSOLE] [-e MS] [-t SECONDS] [-d DEVICE] [-b MIB] MIB RATE [THREADS]\n");
		return 2;
	}
	uint64_t mib = (uint64_t)positive(argv[optind], "MiB", 1);
	double rate = positive(argv[optind + 1], "rate", 0);

	if (argc - optind == 3)
		threads = (int)positive(argv[optind + 2], "threads", 1);
	if (threads > MAX_THREADS) {
		fprintf(stderr, "dirty: threads: %d, at most %d\n", threads, MAX_THREADS);
		return 2;
	}
	if (device != NULL)
		records_open(&records, device);
	uint64_t pages = lay_out(mib, (uint64_t)ballast_mib, rate);

	for (int i = 0; i < threads; i++)
		must_start(&running[i], run, &parts[i]);
	if (device != NULL)
		must_start(&disk, run_records, NULL);

	const struct instant begun = { .uptime = uptime_seconds() };
	struct instant last = begun, first = begun;
	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	while (seconds == 0 || uptime_seconds() - begun.uptime < seconds) {
		long ns = next.tv_nsec + (long)(every * 1e9);

		next.tv_sec += ns / 1000000000;
		next.tv_nsec = ns % 1000000000;
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
			;
		report("DIRTY", pages, &last);
	}
	atomic_store(&over, true);
	for (int i = 0; i < threads; i++)
		pthread_join(running[i], NULL);
	if (device != NULL)
		pthread_join(disk, NULL);
	report("DIRTY-END", pages, &first);
	return 0;
}
