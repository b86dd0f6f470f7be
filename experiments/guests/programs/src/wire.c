/* wire.c makes, checks and sends datagrams. */
#include "canary.h"

#include <errno.h>
#include <linux/errqueue.h>
#include <net/if_arp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* RECEIVE_BUFFER holds more than 5,000 datagrams as the kernel accounts them:
 * several seconds of every peer's traffic. */
#define RECEIVE_BUFFER (16 << 20)

void die(const char *what)
{
	fprintf(stderr, "canary: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* fill writes size bytes that only (src, dst, wire, value) of d determine. */
static void fill(unsigned char *out, size_t size, const struct datagram *d)
{
	uint64_t x = d->value * 0x9e3779b97f4a7c15ull + ((uint64_t)d->wire << 16 | (uint64_t)d->src << 8 | d->dst) + 1;

	for (size_t i = 0; i < size; i++) {
		if (i % 8 == 0) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		out[i] = (unsigned char)(x >> (i % 8 * 8));
	}
}

void seal(void *bytes, size_t size)
{
	struct datagram *d = bytes;

	fill((unsigned char *)bytes + sizeof *d, size - sizeof *d, d);
	d->hash = 0;
	d->hash = fnv1a_64(bytes, size);
}

bool intact(const void *bytes, size_t size)
{
	unsigned char copy[MAX_DATAGRAM], filler[MAX_DATAGRAM];
	struct datagram d;

	if (size < sizeof d || size > sizeof copy)
		return false;
	memcpy(copy, bytes, size);
	memcpy(&d, bytes, sizeof d);
	memset(copy, 0, sizeof d.hash);
	if (d.magic != MAGIC || d.hash != fnv1a_64(copy, size))
		return false;
	fill(filler, size - sizeof d, &d);
	return memcmp(copy + sizeof d, filler, size - sizeof d) == 0;
}

static int with_buffer(int fd)
{
	int size = RECEIVE_BUFFER;

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) != 0)
		die("receive buffer");
	return fd;
}

static struct sockaddr_ll packet_address(const char *device)
{
	struct sockaddr_ll a = {
		.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_DATA), .sll_halen = 6,
		.sll_ifindex = (int)if_nametoindex(device),
	};

	return a;
}

int open_packet_socket(const char *device)
{
	struct sockaddr_ll here = packet_address(device);
	int fd = with_buffer(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETHERTYPE_DATA)));

	if (bind(fd, (struct sockaddr *)&here, sizeof here) != 0)
		die("bind to device");
	return fd;
}

int open_socket(uint16_t port, const char *device)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	int on = 1;
	int fd = with_buffer(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device) + 1) != 0)
		die(device);
	/* Without IP_RECVERR the kernel hides from send() that its queue dropped
	 * the datagram (udp_send_skb in net/ipv4/udp.c). */
	if (setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on) != 0)
		die("IP_RECVERR");
	if (bind(fd, (struct sockaddr *)&here, sizeof here) != 0)
		die("bind");
	return fd;
}

/* drop_socket_errors empties the error queue that IP_RECVERR fills. */
static void drop_socket_errors(int fd)
{
	char bytes[64];

	while (recv(fd, bytes, sizeof bytes, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0)
		;
}

void send_whole(int fd, const struct sockaddr *to, socklen_t to_size, const void *bytes, size_t size, uint64_t *refused)
{
	static const struct timespec pause = { 0, 1000000 };

	while (sendto(fd, bytes, size, 0, to, to_size) < 0) {
		if (errno == EINTR)
			continue;
		/* ENOBUFS: a full queue. The rest are answers to earlier
		 * datagrams, reported in place of sending this one. */
		if (errno != ENOBUFS && errno != ECONNREFUSED && errno != EHOSTUNREACH && errno != ENETUNREACH)
			die("send");
		(*refused)++;
		drop_socket_errors(fd);
		nanosleep(&pause, NULL);
	}
}

void send_packet(int fd, const unsigned char hardware[6], const char *device, const void *bytes, size_t size, uint64_t *refused)
{
	struct sockaddr_ll to = packet_address(device);

	memcpy(to.sll_addr, hardware, 6);
	send_whole(fd, (struct sockaddr *)&to, sizeof to, bytes, size, refused);
}

void pin_neighbour(int fd, const struct sockaddr_in *to, const char *device, unsigned char hardware[6])
{
	struct arpreq entry;

	memset(&entry, 0, sizeof entry);
	memcpy(&entry.arp_pa, to, sizeof *to);
	((struct sockaddr_in *)&entry.arp_pa)->sin_port = 0;
	strncpy(entry.arp_dev, device, sizeof entry.arp_dev - 1);
	if (ioctl(fd, SIOCGARP, &entry) != 0)
		die("read neighbour");
	memcpy(hardware, entry.arp_ha.sa_data, 6);
	entry.arp_flags = ATF_COM | ATF_PERM;
	if (ioctl(fd, SIOCSARP, &entry) != 0)
		die("pin neighbour");
}
