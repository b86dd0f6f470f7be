/* say writes console lines for the shell.
 *
 *	say KIND key=value ...	writes one line
 *	say -tick MS		writes a TICK line every MS milliseconds, for ever
 */
#include "line.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int tick_for_ever(long ms)
{
	struct timespec next;

	if (ms < 1) {
		fprintf(stderr, "say: interval of %ld ms\n", ms);
		return 2;
	}
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (unsigned long n = 1;; n++) {
		struct timespec wall;

		clock_gettime(CLOCK_REALTIME, &wall);
		line_say("TICK n=%lu uptime=%.3f wall=%lld.%03ld", n, uptime_seconds(),
			 (long long)wall.tv_sec, wall.tv_nsec / 1000000);
		next.tv_nsec += ms % 1000 * 1000000;
		next.tv_sec += ms / 1000 + next.tv_nsec / 1000000000;
		next.tv_nsec %= 1000000000;
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
			;
	}
}

int main(int argc, char **argv)
{
	char text[LINE_MAX_BYTES] = "";

	if (argc == 3 && strcmp(argv[1], "-tick") == 0)
		return tick_for_ever(strtol(argv[2], NULL, 10));
	if (argc < 2) {
		fprintf(stderr, "usage: say KIND key=value ... | say -tick MS\n");
		return 2;
	}
	for (int i = 1; i < argc; i++) {
		size_t used = strlen(text);
		int n = snprintf(text + used, sizeof text - used, "%s%s", i > 1 ? " " : "", argv[i]);
		if (n < 0 || (size_t)n >= sizeof text - used) {
			fprintf(stderr, "say: line too long\n");
			return 2;
		}
	}
	line_say("%s", text);
	return 0;
}
