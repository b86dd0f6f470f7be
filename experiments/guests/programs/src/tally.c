/* tally writes to a replicated Redis and knows what must be in it.
 *
 *	tally [-o CONSOLE] RATE KEYS HOST HOST
 *
 * One HOST is the master, the other its replica. Step i sets key i mod KEYS to a value
 * that follows from i, increments the counter n, which must become i, and waits until
 * the replica has both. So n alone says what every key must hold. A step that was
 * lost, done twice or brought back by a checkpoint or a restart shows in the counter;
 * memory that was torn shows in the keys, all of which are read again and again from
 * both hosts.
 *
 * When the master is gone, its replica becomes the master. Every acknowledged step
 * must be in it.
 */
#include "line.h"
#include "resp.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	HOSTS = 2,
	REPLY_SECONDS = 10,
	GONE_SECONDS = 3, /* without a master until its replica takes over */
	SCAN_EVERY = 10,  /* seconds between two readings of all keys */
	VALUE_BYTES = 200,
};

static const char *hosts[HOSTS];
static struct resp connections[HOSTS] = { { .fd = -1 }, { .fd = -1 } };

static uint64_t done; /* steps that were acknowledged */
static int begun;         /* done is known */
static int opened[HOSTS]; /* has been connected to before */

static uint64_t bad, reconnects, failovers, scans, lone; /* lone: steps without replica */
static unsigned long keys;

static void value_of(uint64_t step, char *to)
{
	uint64_t hash = fnv1a_64(&step, sizeof(step));
	int n = sprintf(to, "%" PRIu64 ":", step);

	while (n + 16 <= VALUE_BYTES)
		n += sprintf(to + n, "%016" PRIx64, hash += 0x9e3779b97f4a7c15u);
}

/* wrong counts and tells what is not as it must be. */
static void wrong(const char *what, int host, uint64_t want, const char *got)
{
	if (bad++ < 16)
		line_say("TALLY-BAD what=%s host=%s want=%" PRIu64 " got=%.40s", what, host < 0 ? "-" : hosts[host], want, got);
}

/* field reads one number of INFO, or its text into into; -1: not there. */
static long field(char *info, const char *name, char *into, size_t size)
{
	char *at = strstr(info, name);

	if (at == NULL || at[strlen(name)] != ':')
		return -1;
	at += strlen(name) + 1;
	if (into != NULL)
		snprintf(into, size, "%.*s", (int)strcspn(at, "\r\n"), at);
	return strtol(at, NULL, 10);
}

/* role asks host: 'm' master, 's' replica whose master is there, 'o' replica alone,
 * '-' no answer. */
static int role(int host)
{
	struct resp *r = &connections[host];
	char *text, word[32];

	if (r->fd < 0) {
		if (resp_open(r, hosts[host], REPLY_SECONDS) != 0)
			return '-';
		reconnects += opened[host];
		opened[host] = 1;
	}
	if (resp_ask(r, &text, "INFO replication") != '$' || field(text, "role", word, sizeof(word)) < 0)
		return '-';
	if (strcmp(word, "master") == 0)
		return 'm';
	return field(text, "master_link_status", word, sizeof(word)) == 0 && strcmp(word, "up") == 0 ? 's' : 'o';
}

/* counter reads n; -1: no answer. */
static int64_t counter(int host)
{
	char *text;

	switch (resp_ask(&connections[host], &text, "GET n")) {
	case '$':
		return strtoll(text, NULL, 10);
	case '0':
		return 0;
	}
	return -1;
}

/* find_master returns the host that is master, and makes one if there is none. */
static int find_master(void)
{
	for (double since = uptime_seconds();;) {
		int alone = -1, followed = 0;

		for (int h = 0; h < HOSTS; h++) {
			int is = role(h);
			/* A master that has begun anew is none: it waits to be filled. */
			if (is == 'm' && (!begun || counter(h) >= (int64_t)done))
				return h;
			followed |= is == 's';
			if (is == 'o')
				alone = h;
		}
		if (alone >= 0 && !followed && uptime_seconds() - since >= GONE_SECONDS) {
			char *text;
			if (resp_ask(&connections[alone], &text, "REPLICAOF NO ONE") == '+')
				failovers++;
		}
		usleep(200000);
	}
}

/* check reads key k of host and compares it with what step wrote. */
static int check(int host, unsigned long k, uint64_t step, const char *what)
{
	char want[VALUE_BYTES + 1], *text;

	value_of(step, want);
	if (resp_send(&connections[host], "GET k%lu", k) != 0)
		return -1;
	switch (resp_receive(&connections[host], &text)) {
	case '$':
		if (strcmp(text, want) != 0)
			wrong(what, host, step, text);
		return 0;
	case '0':
		wrong(what, host, step, "nothing");
		return 0;
	}
	return -1;
}

/* scan reads all keys of host. Steps must not run meanwhile. */
static int scan(int host)
{
	if (counter(host) != (int64_t)done)
		wrong("counter", host, done, "another");
	for (unsigned long k = 0; k < keys && done > 0; k++) {
		uint64_t last = done - (done % keys + keys - k) % keys; /* last step of key k */

		if (last == 0 || last > done)
			continue;
		if (check(host, k, last, "scan") != 0)
			return -1;
	}
	return 0;
}

/* step does the next one. Returns how many replicas have it, or -1. */
static int step(int master)
{
	struct resp *r = &connections[master];
	char value[VALUE_BYTES + 1], *text;
	uint64_t i = done + 1;

	value_of(i, value);
	if (resp_send(r, "SET k%lu %s", (unsigned long)(i % keys), value) != 0 || resp_send(r, "INCR n") != 0 || resp_send(r, "WAIT 1 5000") != 0)
		return -1;
	int set = resp_receive(r, &text);
	if (set < 0)
		return -1;
	if (set != '+')
		wrong("set", master, i, text);
	if (resp_receive(r, &text) != ':')
		return -1;
	if (strtoull(text, NULL, 10) != i)
		wrong("increment", master, i, text);
	if (resp_receive(r, &text) != ':')
		return -1;
	done = i;
	return atoi(text);
}

/* serve works with one master until it is gone. */
static void serve(int master, long interval)
{
	int other = 1 - master, following;
	int64_t n = counter(master);
	struct timespec next;
	double said = 0, scanned = uptime_seconds();
	char *text;

	if (n < 0)
		return;
	if (begun && n != (int64_t)done && n != (int64_t)done + 1)
		wrong("counter", master, done, "another");
	done = n;
	if (!begun) {
		begun = 1;
		line_say("TALLY-START n=%" PRIu64 " keys=%lu uptime=%.3f", done, keys, uptime_seconds());
	}
	clock_gettime(CLOCK_MONOTONIC, &next);
	while ((following = step(master)) >= 0) {
		double now = uptime_seconds();

		if (following == 0)
			lone++;
		else if (check(other, done % keys, done, "replica") != 0)
			role(other); /* connects again */
		if (now - scanned >= SCAN_EVERY && following > 0) {
			if (scan(master) == 0 && scan(other) == 0)
				scans++;
			scanned = now;
		}
		if (now - said >= 1) {
			said = now;
			if (resp_ask(&connections[master], &text, "INFO stats") != '$')
				return;
			line_say("TALLY n=%" PRIu64 " bad=%" PRIu64 " reconnects=%" PRIu64 " failovers=%" PRIu64 " syncs=%ld scans=%" PRIu64 " lone=%" PRIu64 " master=%s replicas=%d uptime=%.3f",
				 done, bad, reconnects, failovers, field(text, "sync_full", NULL, 0), scans, lone, hosts[master], following, uptime_seconds());
		}
		next.tv_nsec += interval % 1000000000;
		next.tv_sec += interval / 1000000000 + next.tv_nsec / 1000000000;
		next.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}

int main(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "o:")) != -1) {
		if (option != 'o')
			return 2;
		line_open(optarg);
	}
	long rate = argc - optind == 4 ? atol(argv[optind]) : 0;
	keys = rate > 0 ? strtoul(argv[optind + 1], NULL, 10) : 0;
	if (rate < 1 || keys < 1) {
		fprintf(stderr, "usage: tally [-o CONSOLE] RATE KEYS HOST HOST\n");
		return 2;
	}
	for (int h = 0; h < HOSTS; h++)
		hosts[h] = argv[optind + 2 + h];
	for (;;)
		serve(find_master(), 1000000000 / rate);
}
