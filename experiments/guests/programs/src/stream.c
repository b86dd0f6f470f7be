/* stream.c is the canary's wire of TCP connections. */
#include "canary.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum state { STATE_NONE, STATE_CONNECTING, STATE_UP };

static struct stream {
	enum state state;
	int fd;
	unsigned char out[MAX_DATAGRAM], in[MAX_DATAGRAM];
	size_t out_size, out_done, in_size;
} streams[MAX_GUESTS + 1];

static int listener;
static size_t block_size;
static uint64_t broken;

static int tcp_socket(int flags)
{
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK | flags, 0);

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
		die("SO_REUSEADDR");
	return fd;
}

void stream_open(const char *device, size_t block)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(STREAM_PORT) };

	block_size = block;
	listener = tcp_socket(0);
	if (setsockopt(listener, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device) + 1) != 0)
		die(device);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) != 0 || listen(listener, MAX_GUESTS) != 0)
		die("listen");
}

static void up(int i, int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
		die("TCP_NODELAY");
	streams[i].fd = fd;
	streams[i].state = STATE_UP;
}

/* fail takes note of the end of a connection. Nothing makes it anew: what was on it
 * is lost, and counted so. */
static void fail(int i, const char *what)
{
	fprintf(stderr, "canary: stream with g%d: %s: %s\n", i, what, strerror(errno));
	close(streams[i].fd);
	streams[i].state = STATE_NONE;
	broken++;
}

static void take_callers(void)
{
	struct sockaddr_in from;
	socklen_t size = sizeof from;
	int fd;

	while ((fd = accept4(listener, (struct sockaddr *)&from, &size, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
		int i = (int)(ntohl(from.sin_addr.s_addr) & 0xff) - 10;

		if (i < 1 || i > MAX_GUESTS || streams[i].state != STATE_NONE)
			close(fd);
		else
			up(i, fd);
		size = sizeof from;
	}
}

static void call(int i, const struct sockaddr_in *to)
{
	struct stream *s = &streams[i];
	struct sockaddr_in there = *to;
	int error = 0;
	socklen_t size = sizeof error;

	there.sin_port = htons(STREAM_PORT);
	if (s->state == STATE_NONE) {
		s->fd = tcp_socket(0);
		s->state = STATE_CONNECTING;
		if (connect(s->fd, (struct sockaddr *)&there, sizeof there) == 0 || errno == EINPROGRESS)
			return;
		error = errno;
	} else if (s->state == STATE_CONNECTING) {
		struct pollfd p = { .fd = s->fd, .events = POLLOUT };

		if (poll(&p, 1, 0) == 0)
			return;
		if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
			die("SO_ERROR");
	}
	if (error == 0) {
		up(i, s->fd);
	} else {	/* it does not listen yet */
		close(s->fd);
		s->state = STATE_NONE;
	}
}

bool stream_greet(int me, int i, const struct sockaddr_in *to)
{
	take_callers();
	if (i < me && streams[i].state != STATE_UP)
		call(i, to);
	return streams[i].state == STATE_UP;
}

bool stream_room(int i)
{
	struct stream *s = &streams[i];

	while (s->state == STATE_UP && s->out_done < s->out_size) {
		ssize_t n = send(s->fd, s->out + s->out_done, s->out_size - s->out_done, MSG_NOSIGNAL);

		if (n >= 0)
			s->out_done += (size_t)n;
		else if (errno == EAGAIN)
			return false;
		else if (errno != EINTR)
			fail(i, "send");
	}
	return s->state == STATE_UP;
}

void stream_send(int i, const void *block)
{
	struct stream *s = &streams[i];

	memcpy(s->out, block, block_size);
	s->out_size = block_size;
	s->out_done = 0;
	stream_room(i);
}

bool stream_next(int i, void *block)
{
	struct stream *s = &streams[i];

	while (s->state == STATE_UP && s->in_size < block_size) {
		ssize_t n = recv(s->fd, s->in + s->in_size, block_size - s->in_size, 0);

		if (n > 0) {
			s->in_size += (size_t)n;
		} else if (n == 0) {	/* its canary has ended, or its lost blocks will tell */
			close(s->fd);
			s->state = STATE_NONE;
		} else if (errno == EAGAIN) {
			return false;
		} else if (errno != EINTR) {
			fail(i, "receive");
		}
	}
	if (s->in_size < block_size)
		return false;
	memcpy(block, s->in, block_size);
	s->in_size = 0;
	return true;
}

uint64_t stream_broken(void)
{
	return broken;
}

int stream_poll(struct pollfd *fds)
{
	int n = 0;

	for (int i = 1; i <= MAX_GUESTS; i++) {
		const struct stream *s = &streams[i];

		if (s->state == STATE_UP)
			fds[n++] = (struct pollfd){ .fd = s->fd,
				.events = (short)(POLLIN | (s->out_done < s->out_size ? POLLOUT : 0)) };
	}
	return n;
}
