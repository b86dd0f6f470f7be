#include "line.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int line_fd = STDOUT_FILENO;

uint32_t fnv1a_32(const void *bytes, size_t n)
{
	const unsigned char *p = bytes;
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 16777619u;
	return h;
}

uint64_t fnv1a_64(const void *bytes, size_t n)
{
	const unsigned char *p = bytes;
	uint64_t h = 14695981039346656037ull;

	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 1099511628211ull;
	return h;
}

double uptime_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void line_open(const char *path)
{
	if (path == NULL)
		return;
	line_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY, 0644);
	if (line_fd < 0) {
		perror(path);
		exit(2);
	}
}

void line_say(const char *format, ...)
{
	char line[LINE_MAX_BYTES] = "FERMATA ";
	size_t prefix = strlen(line);
	size_t room = sizeof line - prefix - sizeof " #xxxxxxxx\n";
	va_list args;

	va_start(args, format);
	int n = vsnprintf(line + prefix, room, format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= room) {
		fprintf(stderr, "console line too long\n");
		exit(2);
	}

	size_t len = prefix + (size_t)n;
	uint32_t hash = fnv1a_32(line, len);
	len += (size_t)snprintf(line + len, sizeof line - len, " #%08x\n", hash);

	for (size_t done = 0; done < len;) {
		ssize_t w = write(line_fd, line + done, len - done);
		if (w < 0) {
			if (errno == EINTR)
				continue;
			exit(2);
		}
		done += (size_t)w;
	}
}
