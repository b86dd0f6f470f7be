#include "resp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

void resp_close(struct resp *r)
{
	if (r->fd >= 0)
		close(r->fd);
	r->fd = -1;
}

/* address finds host in /etc/hosts; a static program has no resolver. */
static int address(const char *host, struct sockaddr_in *to)
{
	char line[256], ip[64], name[64];
	unsigned a, b, c, d;
	int found = -1;
	FILE *f = fopen("/etc/hosts", "r");

	if (f == NULL)
		return -1;
	while (found != 0 && fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "%63s %63s", ip, name) != 2 || strcmp(name, host) != 0)
			continue;
		if (sscanf(ip, "%u.%u.%u.%u", &a, &b, &c, &d) != 4)
			continue;
		to->sin_family = AF_INET;
		to->sin_port = htons(6379);
		to->sin_addr.s_addr = htonl(a << 24 | b << 16 | c << 8 | d);
		found = 0;
	}
	fclose(f);
	return found;
}

int resp_open(struct resp *r, const char *host, int seconds)
{
	struct timeval limit = { .tv_sec = seconds };
	struct sockaddr_in to = { 0 };
	int one = 1;

	if (address(host, &to) != 0)
		return -1;
	r->have = r->used = 0;
	r->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (r->fd < 0)
		return -1;
	/* The time limit of sending is connect's, too (socket(7)). */
	if (setsockopt(r->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
	    setsockopt(r->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0 ||
	    setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0 ||
	    connect(r->fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
		resp_close(r);
		return -1;
	}
	return 0;
}

int resp_send(struct resp *r, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	int n = vsnprintf(text, sizeof(text) - 2, format, args);
	va_end(args);
	if (r->fd < 0 || n < 0 || n >= (int)sizeof(text) - 2)
		return -1;
	memcpy(text + n, "\r\n", 2);
	n += 2;
	for (int done = 0; done < n;) {
		ssize_t m = send(r->fd, text + done, n - done, MSG_NOSIGNAL);
		if (m <= 0) {
			resp_close(r);
			return -1;
		}
		done += m;
	}
	return 0;
}

/* fill reads more. Returns 0, or -1. */
static int fill(struct resp *r)
{
	if (r->used > 0) {
		memmove(r->buffer, r->buffer + r->used, r->have - r->used);
		r->have -= r->used;
		r->used = 0;
	}
	if (r->have == sizeof(r->buffer))
		return -1;
	ssize_t m = recv(r->fd, r->buffer + r->have, sizeof(r->buffer) - r->have, 0);
	if (m <= 0)
		return -1;
	r->have += m;
	return 0;
}

/* take returns the next n bytes and skips the two of the line end behind them. */
static char *take(struct resp *r, size_t n)
{
	while (r->have - r->used < n + 2)
		if (fill(r) != 0)
			return NULL;
	char *text = r->buffer + r->used;
	text[n] = 0;
	r->used += n + 2;
	return text;
}

/* line returns the next line without its end. */
static char *line(struct resp *r)
{
	for (;;) {
		char *end = memmem(r->buffer + r->used, r->have - r->used, "\r\n", 2);
		if (end != NULL)
			return take(r, end - (r->buffer + r->used));
		if (fill(r) != 0)
			return NULL;
	}
}

int resp_receive(struct resp *r, char **text)
{
	char *head = r->fd < 0 ? NULL : line(r);

	if (head == NULL)
		goto broken;
	*text = head + 1;
	switch (head[0]) {
	case '+':
	case '-':
	case ':':
		return head[0];
	case '$': {
		long n = strtol(head + 1, NULL, 10);
		if (n < 0)
			return '0';
		if (n > RESP_MAX_BYTES - 64)
			goto broken;
		*text = take(r, n);
		if (*text != NULL)
			return '$';
	}
	}
broken:
	resp_close(r);
	return -1;
}

int resp_ask(struct resp *r, char **text, const char *command)
{
	if (resp_send(r, "%s", command) != 0)
		return -1;
	return resp_receive(r, text);
}
