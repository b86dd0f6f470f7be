/* secret holds what no checkpoint may have, and looks whether it still does.
 *
 *	secret [-o CONSOLE] PAGES HIDE
 *
 * PAGES of locked memory are registered with fermata-guest, if HIDE is 1, and then
 * filled with words that nobody else has. Every 50 ms it looks at them, and writes a
 * SECRET line when they are something else than they were: whole, zero or torn.
 */
#include "line.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* word is number i of the secret: a multiple of an odd number, so none is there twice;
 * not one of the first, which kernels hash with.
 * It is computed where it is needed, and in no other memory (experiments/guests:
 * SecretWord). */
static uint64_t word(uint64_t i) { return (i + 1000003) * 0x9e3779b97f4a7c15u; }

static const char *state_of(const volatile uint64_t *words, uint64_t count)
{
	uint64_t right = 0, zero = 0;

	for (uint64_t i = 0; i < count; i++) {
		right += words[i] == word(i);
		zero += words[i] == 0;
	}
	return right == count ? "whole" : zero == count ? "zero" : "torn";
}

int main(int argc, char **argv)
{
	static const struct timespec interval = { 0, 50000000 };
	int option;

	while ((option = getopt(argc, argv, "o:")) != -1) {
		if (option != 'o')
			return 2;
		line_open(optarg);
	}
	if (argc - optind != 2) {
		fprintf(stderr, "usage: secret [-o CONSOLE] PAGES HIDE\n");
		return 2;
	}
	uint64_t bytes = strtoul(argv[optind], NULL, 10) * 4096, count = bytes / 8;
	volatile uint64_t *words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (bytes == 0 || words == MAP_FAILED || madvise((void *)words, bytes, MADV_NOHUGEPAGE) != 0 || mlock((void *)words, bytes) != 0) {
		fprintf(stderr, "secret: cannot lock %llu bytes\n", (unsigned long long)bytes);
		return 2;
	}
	memset((void *)words, 1, bytes);
	int status = -1;
	if (atoi(argv[optind + 1]) == 1) {
		char command[200];

		snprintf(command, sizeof command, "fermata-guest hide --pid %d --address %p --bytes %llu >/dev/null",
			 (int)getpid(), (void *)words, (unsigned long long)bytes);
		status = system(command);
	}
	for (uint64_t i = 0; i < count; i++)
		words[i] = word(i);
	line_say("SECRET-START bytes=%llu status=%d uptime=%.3f", (unsigned long long)bytes, status, uptime_seconds());
	for (const char *last = "";;) {
		const char *now = state_of(words, count);

		if (now != last)
			line_say("SECRET state=%s uptime=%.3f", now, uptime_seconds());
		last = now;
		nanosleep(&interval, NULL);
	}
}
