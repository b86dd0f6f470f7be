/* canary watches the wire: every guest sends numbered datagrams to every other
 * one, and each receiver knows in the end exactly what was lost, doubled,
 * reordered or damaged. Data is never sent again; only the little control
 * traffic around it is.
 *
 *	canary -i INDEX -c COUNT -n A.B.C -d DEVICE -r RATE -s SIZE [-w WIRES]
 *		[-t SECONDS] [-g GRACE] [-1]
 *
 * RATE is datagrams a second to each peer, SIZE their bytes. WIRES is what they are
 * sent in, some of udp, eth and tcp with a + between them: UDP, bare Ethernet frames,
 * and blocks of a TCP stream, whose rate is what the stream takes if that is less.
 * The run has four phases, each guest on its own:
 *
 *	greet	HELLO to every peer until all acknowledged; pin their hardware addresses
 *	send	data to all, until guest 1 says STOP (it does so on SIGTERM or after SECONDS)
 *	settle	tell every peer how many datagrams it was sent, wait for the same from all
 *	report	write CANARY-FINAL per peer and CANARY-END; again every REPEAT seconds,
 *		since the console of a guest restarted later begins empty
 *
 * With -1 the canary ends LINGER seconds after its first report.
 */
#include "canary.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* RETRY spaces repeated control datagrams. */
#define RETRY 0.2

/* GRACE is how long, by default, a datagram may still come after its sender
 * told its count: far longer than any wire holds a frame while guests run. */
#define GRACE 5.0

#define REPEAT 10.0
#define LINGER 3.0

/* MAX_BURST bounds the datagrams sent to one peer to catch up after the guest
 * had no processor; the rest of the backlog is given up. */
#define MAX_BURST 8

enum phase { PHASE_GREET, PHASE_SEND, PHASE_SETTLE, PHASE_REPORT };

static const char *const phase_names[] = { "greet", "send", "settle", "report" };

static const char *const wire_names[WIRES] = { "udp", "eth", "tcp" };

static struct {
	int me, count;
	bool wires[WIRES];
	const char *device;
	double interval;	/* seconds between datagrams to one peer */
	size_t size;
	double seconds;		/* guest 1 stops by itself after this; 0 = never */
	double grace;		/* seconds */
	bool once;
} opt = { .grace = GRACE };

static struct peer peers[MAX_GUESTS + 1];
static struct source sources[WIRES][MAX_GUESTS + 1];
static enum phase phase = PHASE_GREET;
static uint64_t refused, slipped, corrupt;
static int data_fd = -1, packet_fd = -1, control_fd;
static volatile sig_atomic_t told_to_stop;

static void on_term(int signal)
{
	(void)signal;
	told_to_stop = 1;
}

static bool is_peer(int i)
{
	return i >= 1 && i <= opt.count && i != opt.me;
}

static struct datagram datagram_of(int to, int kind, int wire, uint64_t value)
{
	return (struct datagram){
		.magic = MAGIC, .kind = (uint8_t)kind, .src = (uint8_t)opt.me, .dst = (uint8_t)to, .wire = (uint8_t)wire,
		.value = value, .sent_ns = (uint64_t)(uptime_seconds() * 1e9),
	};
}

static void send_kind(int to, int kind, int wire, uint64_t value)
{
	struct datagram d = datagram_of(to, kind, wire, value);

	seal(&d, sizeof d);
	send_whole(control_fd, (struct sockaddr *)&peers[to].control, sizeof peers[to].control, &d, sizeof d, &refused);
}

static void send_data(int to, int wire)
{
	unsigned char bytes[MAX_DATAGRAM];
	struct datagram d = datagram_of(to, KIND_DATA, wire, peers[to].sent[wire]);

	if (wire == WIRE_TCP && !stream_room(to))
		return;
	memcpy(bytes, &d, sizeof d);
	seal(bytes, opt.size);
	switch (wire) {
	case WIRE_UDP:
		send_whole(data_fd, (struct sockaddr *)&peers[to].data, sizeof peers[to].data, bytes, opt.size, &refused);
		break;
	case WIRE_ETH:
		send_packet(packet_fd, peers[to].hardware, opt.device, bytes, opt.size, &refused);
		break;
	default:
		stream_send(to, bytes);
	}
	peers[to].sent[wire]++;
}

/* next_from reads one datagram of fd that was meant for this guest. Returns its
 * size or 0 when there is none. */
static size_t next_from(int fd, void *bytes)
{
	while (fd >= 0) {
		ssize_t n = recv(fd, bytes, MAX_DATAGRAM, MSG_DONTWAIT | MSG_TRUNC);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0) {	/* an ICMP answer; its copy waits in the error queue */
			recv(fd, bytes, MAX_DATAGRAM, MSG_ERRQUEUE | MSG_DONTWAIT);
			continue;
		}
		const struct datagram *d = bytes;
		if (!intact(bytes, (size_t)n) || d->dst != opt.me || !is_peer(d->src)) {
			corrupt++;
			continue;
		}
		return (size_t)n;
	}
	return 0;
}

static void enter(const struct datagram *d, int wire)
{
	if (d->kind != KIND_DATA || d->wire != wire || !books_enter(&sources[wire][d->src], d->value, uptime_seconds()))
		corrupt++;
	else
		books_receipt(d->hash);
}

static void read_data(void)
{
	_Alignas(8) unsigned char bytes[MAX_DATAGRAM];
	const struct datagram *d = (const struct datagram *)bytes;

	while (next_from(data_fd, bytes) > 0)
		enter(d, WIRE_UDP);
	while (next_from(packet_fd, bytes) > 0)
		enter(d, WIRE_ETH);
	for (int i = 1; opt.wires[WIRE_TCP] && i <= opt.count; i++) {
		while (is_peer(i) && stream_next(i, bytes)) {
			if (intact(bytes, opt.size) && d->src == i && d->dst == opt.me)
				enter(d, WIRE_TCP);
			else
				corrupt++;
		}
	}
}

static void begin_settle(void)
{
	if (phase < PHASE_SETTLE)
		phase = PHASE_SETTLE;
}

static void read_control(void)
{
	_Alignas(8) unsigned char bytes[MAX_DATAGRAM];
	const struct datagram *d = (const struct datagram *)bytes;

	while (next_from(control_fd, bytes) > 0) {
		struct peer *p = &peers[d->src];
		int wire = d->wire < WIRES ? d->wire : WIRE_UDP;
		struct source *s = &sources[wire][d->src];

		switch (d->kind) {
		case KIND_HELLO:
			break;
		case KIND_STOP:
			begin_settle();
			break;
		case KIND_COUNT:
			if (!s->counted) {
				s->counted = true;
				s->sent = d->value;
				s->counted_at = uptime_seconds();
			}
			break;
		case KIND_HELLO | KIND_ACK:
			p->hello_acked = true;
			continue;
		case KIND_STOP | KIND_ACK:
			p->stop_acked = true;
			continue;
		case KIND_COUNT | KIND_ACK:
			p->count_acked[wire] = true;
			continue;
		default:
			corrupt++;
			continue;
		}
		send_kind(d->src, d->kind | KIND_ACK, d->wire, d->value);
	}
}

/* nag repeats what peers have not acknowledged. */
static void nag(void)
{
	for (int i = 1; i <= opt.count; i++) {
		if (!is_peer(i))
			continue;
		if (!peers[i].hello_acked)
			send_kind(i, KIND_HELLO, 0, 0);
		if (phase < PHASE_SETTLE)
			continue;
		if (opt.me == 1 && !peers[i].stop_acked)
			send_kind(i, KIND_STOP, 0, 0);
		for (int wire = 0; wire < WIRES; wire++)
			if (opt.wires[wire] && !peers[i].count_acked[wire])
				send_kind(i, KIND_COUNT, wire, peers[i].sent[wire]);
	}
}

static bool all_greeted(void)
{
	bool all = true;

	for (int i = 1; i <= opt.count; i++)
		if (is_peer(i) && (!peers[i].hello_acked ||
				   (opt.wires[WIRE_TCP] && !stream_greet(opt.me, i, &peers[i].data))))
			all = false;
	return all;
}

static void begin_send(void)
{
	for (int i = 1; i <= opt.count; i++)
		if (is_peer(i))
			pin_neighbour(control_fd, &peers[i].data, opt.device, peers[i].hardware);
	phase = PHASE_SEND;
	line_say("CANARY-START me=g%d peers=%d interval=%.6f size=%zu uptime=%.3f",
		 opt.me, opt.count - 1, opt.interval, opt.size, uptime_seconds());
}

/* settled tells whether every count is exchanged and every datagram is in, or
 * will not come any more. */
static bool settled(double now)
{
	for (int i = 1; i <= opt.count; i++) {
		if (is_peer(i) && opt.me == 1 && !peers[i].stop_acked)
			return false;
		for (int wire = 0; wire < WIRES; wire++) {
			const struct source *s = &sources[wire][i];

			if (!is_peer(i) || !opt.wires[wire])
				continue;
			if (!s->counted || !peers[i].count_acked[wire])
				return false;
			double quiet_since = s->last_arrival > s->counted_at ? s->last_arrival : s->counted_at;
			if (s->received < s->sent && now - quiet_since < opt.grace)
				return false;
		}
	}
	return true;
}

static void say_status(void)
{
	uint64_t sent = 0, received = 0, missing = 0, doubled = 0, reordered = 0;
	double gap = 0;

	for (int i = 0; i < WIRES * opt.count; i++) {
		int wire = i / opt.count, peer = 1 + i % opt.count;
		const struct source *s = &sources[wire][peer];

		if (!is_peer(peer))
			continue;
		sent += peers[peer].sent[wire];
		received += s->received;
		missing += s->next - s->received;
		doubled += s->doubled;
		reordered += s->reordered;
		if (s->longest_gap > gap)
			gap = s->longest_gap;
	}
	line_say("CANARY me=g%d phase=%s sent=%llu received=%llu missing=%llu doubled=%llu reordered=%llu corrupt=%llu gap=%.3f",
		 opt.me, phase_names[phase], (unsigned long long)sent, (unsigned long long)received,
		 (unsigned long long)missing, (unsigned long long)doubled, (unsigned long long)reordered,
		 (unsigned long long)corrupt, gap);
}

static void say_report(void)
{
	struct kernel_drops k = read_kernel_drops(opt.device);
	int wires = 0;

	line_say("CANARY-KERNEL me=g%d udp-in-errors=%llu udp-receive-buffer=%llu udp-send-buffer=%llu udp-checksum=%llu"
		 " tcp-timeouts=%llu tcp-retransmits=%llu tcp-resets=%llu broken=%llu"
		 " device-rx-dropped=%llu device-tx-dropped=%llu device-errors=%llu refused=%llu slipped=%llu",
		 opt.me, (unsigned long long)k.udp_in_errors, (unsigned long long)k.udp_receive_buffer,
		 (unsigned long long)k.udp_send_buffer, (unsigned long long)k.udp_checksum,
		 (unsigned long long)k.tcp_timeouts, (unsigned long long)k.tcp_retransmits, (unsigned long long)k.tcp_resets,
		 (unsigned long long)stream_broken(),
		 (unsigned long long)k.device_rx_dropped, (unsigned long long)k.device_tx_dropped,
		 (unsigned long long)k.device_errors, (unsigned long long)refused, (unsigned long long)slipped);
	for (int wire = 0; wire < WIRES; wire++) {
		wires += opt.wires[wire];
		for (int i = 1; i <= opt.count; i++) {
			const struct source *s = &sources[wire][i];

			if (!is_peer(i) || !opt.wires[wire])
				continue;
			line_say("CANARY-FINAL me=g%d from=g%d wire=%s sent=%llu received=%llu lost=%lld doubled=%llu reordered=%llu gap=%.3f",
				 opt.me, i, wire_names[wire], (unsigned long long)s->sent, (unsigned long long)s->received,
				 (long long)(s->sent - s->received), (unsigned long long)s->doubled,
				 (unsigned long long)s->reordered, s->longest_gap);
		}
	}
	line_say("CANARY-END me=g%d peers=%d wires=%d corrupt=%llu", opt.me, opt.count - 1, wires, (unsigned long long)corrupt);
}

/* send_due sends what is due at now and returns when the next is. */
static double send_due(double due, double now)
{
	int burst = 0;

	while (due <= now) {
		if (burst++ == MAX_BURST) {
			uint64_t missed = (uint64_t)((now - due) / opt.interval) + 1;
			slipped += missed;
			return due + (double)missed * opt.interval;
		}
		for (int wire = 0; wire < WIRES; wire++)
			for (int i = 1; i <= opt.count; i++)
				if (is_peer(i) && opt.wires[wire])
					send_data(i, wire);
		due += opt.interval;
	}
	return due;
}

static void wait_until(double when)
{
	struct pollfd fds[3 + MAX_GUESTS] = {
		{ .fd = data_fd, .events = POLLIN }, { .fd = packet_fd, .events = POLLIN }, { .fd = control_fd, .events = POLLIN },
	};
	nfds_t count = 3 + (nfds_t)stream_poll(fds + 3);
	double left = when - uptime_seconds();
	struct timespec t = { 0, 0 };

	if (left > 0) {
		t.tv_sec = (time_t)left;
		t.tv_nsec = (long)((left - (double)t.tv_sec) * 1e9);
	}
	if (ppoll(fds, count, &t, NULL) < 0 && errno != EINTR) {
		perror("canary: ppoll");
		exit(2);
	}
}

static void run(void)
{
	double nag_at = 0, status_at = uptime_seconds() + 1, due = 0, stop_at = 0, report_at = 0, end_at = 0;

	for (;;) {
		read_data();
		read_control();

		double now = uptime_seconds(), wake = status_at;
		if (phase == PHASE_GREET && all_greeted()) {
			begin_send();
			due = now;
			stop_at = opt.seconds > 0 ? now + opt.seconds : 0;
		}
		if (phase == PHASE_SEND && opt.me == 1 && (told_to_stop || (stop_at > 0 && now >= stop_at))) {
			begin_settle();
			nag_at = now;
		}
		if (phase == PHASE_SEND) {
			due = send_due(due, now);
			wake = due < wake ? due : wake;
		}
		if (phase != PHASE_SEND) {
			if (now >= nag_at) {
				nag();
				nag_at = now + RETRY;
			}
			wake = nag_at < wake ? nag_at : wake;
		}
		for (int i = 1; opt.wires[WIRE_TCP] && i <= opt.count; i++)
			if (is_peer(i))
				stream_room(i);
		if (phase == PHASE_SETTLE && settled(now)) {
			phase = PHASE_REPORT;
			say_status();
			end_at = now + LINGER;
		}
		if (phase == PHASE_REPORT && now >= report_at) {
			say_report();
			report_at = now + REPEAT;
		}
		if (phase == PHASE_REPORT && opt.once && now >= end_at)
			return;
		if (now >= status_at) {
			if (phase != PHASE_REPORT)
				say_status();
			status_at = now + 1;
		}
		wait_until(wake);
	}
}

static void usage(void)
{
	fprintf(stderr, "usage: canary -i INDEX -c COUNT -n A.B.C -d DEVICE -r RATE -s SIZE [-w WIRES] [-t SECONDS] [-g GRACE] [-1]\n");
	exit(2);
}

static void set_up_peers(const char *net)
{
	for (int i = 1; i <= opt.count; i++) {
		char text[64];
		struct sockaddr_in a = { .sin_family = AF_INET };

		snprintf(text, sizeof text, "%s.%d", net, 10 + i);
		if (inet_pton(AF_INET, text, &a.sin_addr) != 1) {
			fprintf(stderr, "canary: address %s\n", text);
			exit(2);
		}
		peers[i].data = a;
		peers[i].data.sin_port = htons(DATA_PORT);
		peers[i].control = a;
		peers[i].control.sin_port = htons(CONTROL_PORT);
	}
}

/* set_up_wires takes a list with a + between its words. */
static void set_up_wires(char *list)
{
	for (char *word = strtok(list, "+"); word != NULL; word = strtok(NULL, "+")) {
		int wire = 0;

		while (wire < WIRES && strcmp(word, wire_names[wire]) != 0)
			wire++;
		if (wire == WIRES)
			usage();
		opt.wires[wire] = true;
	}
	if (opt.wires[WIRE_UDP])
		data_fd = open_socket(DATA_PORT, opt.device);
	if (opt.wires[WIRE_ETH])
		packet_fd = open_packet_socket(opt.device);
	if (opt.wires[WIRE_TCP])
		stream_open(opt.device, opt.size);
}

int main(int argc, char **argv)
{
	char udp[] = "udp", *wires = udp;
	const char *net = NULL;
	double rate = 0;
	int c;

	while ((c = getopt(argc, argv, "i:c:n:d:r:s:w:t:g:1")) != -1) {
		switch (c) {
		case 'i': opt.me = atoi(optarg); break;
		case 'c': opt.count = atoi(optarg); break;
		case 'n': net = optarg; break;
		case 'd': opt.device = optarg; break;
		case 'r': rate = atof(optarg); break;
		case 's': opt.size = (size_t)atoi(optarg); break;
		case 'w': wires = optarg; break;
		case 't': opt.seconds = atof(optarg); break;
		case 'g': opt.grace = atof(optarg); break;
		case '1': opt.once = true; break;
		default: usage();
		}
	}
	if (opt.count < 2 || opt.count > MAX_GUESTS || opt.me < 1 || opt.me > opt.count || net == NULL ||
	    opt.device == NULL || rate <= 0 || rate > 100000 || opt.size < sizeof(struct datagram) ||
	    opt.size > MAX_DATAGRAM)
		usage();
	opt.interval = 1 / rate;
	set_up_peers(net);

	struct sigaction act = { .sa_handler = on_term };
	sigaction(SIGTERM, &act, NULL);
	set_up_wires(wires);
	control_fd = open_socket(CONTROL_PORT, opt.device);
	run();
	return 0;
}
