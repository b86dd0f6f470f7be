/* What the parts of the canary share: the wire format and the books. */
#ifndef FERMATA_CANARY_H
#define FERMATA_CANARY_H

#include "line.h"

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/* Guests have indices 1 .. MAX_GUESTS; the last byte of an address is 10+index. */
#define MAX_GUESTS 64

#define DATA_PORT 7700
#define CONTROL_PORT 7701
#define STREAM_PORT 7702

/* ETHERTYPE_DATA is IEEE 802 local experimental EtherType 2: 1 is what the fabric's sentinels
 * have. */
#define ETHERTYPE_DATA 0x88b6

/* wire is a way that data takes. */
enum wire { WIRE_UDP, WIRE_ETH, WIRE_TCP, WIRES };

/* MAX_DATAGRAM keeps a datagram in one Ethernet frame of 1500 bytes, so that a
 * lost frame is one lost datagram. */
#define MAX_DATAGRAM 1472

enum kind {
	KIND_DATA = 1,
	KIND_HELLO,	/* is your canary there? */
	KIND_STOP,	/* stop sending data */
	KIND_COUNT,	/* value = how many data datagrams I sent you in all */
	KIND_ACK = 0x80	/* or-ed to the kind that is acknowledged */
};

/* datagram is the fixed part of everything sent. Hosts are all little-endian
 * x86-64, so fields travel as they lie. A data datagram goes on with filler that
 * depends on src, dst, wire and value. hash covers the whole datagram with hash = 0. */
struct datagram {
	uint64_t hash;
	uint32_t magic;
	uint8_t kind;
	uint8_t src, dst;
	uint8_t wire;
	uint64_t value;		/* data: sequence number from 0 */
	uint64_t sent_ns;	/* sender's monotonic clock */
};

#define MAGIC 0x464d4331u	/* "FMC1" */

/* source is what this guest knows of the data from one peer on one wire. */
struct source {
	uint64_t received;	/* distinct sequence numbers seen */
	uint64_t doubled;	/* arrivals of a number already seen */
	uint64_t reordered;	/* first arrivals after a higher number */
	uint64_t next;		/* 1 + highest number seen */
	uint64_t *seen;		/* one bit a number below next */
	uint64_t seen_words;
	double last_arrival;	/* uptime; 0 before the first */
	double longest_gap;	/* seconds between two arrivals while sending */
	bool counted;		/* the peer told how many it sent */
	uint64_t sent;		/* that number */
	double counted_at;
};

/* peer is the other half: what this guest owes one peer. */
struct peer {
	struct sockaddr_in data, control;
	unsigned char hardware[6];	/* address, once it is pinned */
	uint64_t sent[WIRES];		/* data datagrams handed to the kernel */
	bool hello_acked, stop_acked, count_acked[WIRES];
};

/* books.c */

/* books_enter takes an arrival of number value into account. Returns false if
 * value is beyond what any sender can have sent. */
bool books_enter(struct source *s, uint64_t value, double now);

/* receipt is what the canary keeps of each datagram it has received, for who searches
 * the guest's memory: it is there once, and unlike the datagram's own bytes, of which
 * the kernel leaves copies. */
struct receipt {
	uint64_t magic;
	uint64_t masked;	/* datagram's hash ^ RECEIPT_MASK */
};

#define RECEIPT_MAGIC 0x5443454d46414d52ull
#define RECEIPT_MASK 0xa5a5a5a5a5a5a5a5ull

void books_receipt(uint64_t hash);

/* wire.c */

/* die ends the program with what went wrong and errno's text. */
_Noreturn void die(const char *what);

/* seal completes d, of size bytes, and its filler. */
void seal(void *d, size_t size);

/* intact tells whether d, of size bytes, is what seal made. */
bool intact(const void *d, size_t size);

/* open_packet_socket makes a socket for data in bare Ethernet frames. */
int open_packet_socket(const char *device);

/* open_socket makes a UDP socket on port of device, with a receive buffer that
 * outlasts a guest that gets no processor for seconds. */
int open_socket(uint16_t port, const char *device);

/* send_whole hands size bytes to the kernel; it waits for room and repeats what
 * the kernel refused, counting in *refused. A datagram it returned from is in the
 * kernel exactly once. */
void send_whole(int fd, const struct sockaddr *to, socklen_t to_size, const void *bytes, size_t size, uint64_t *refused);

/* send_packet is send_whole in a bare Ethernet frame. */
void send_packet(int fd, const unsigned char hardware[6], const char *device, const void *bytes, size_t size, uint64_t *refused);

/* pin_neighbour makes the resolved hardware address of to permanent, so that no
 * pause of the peer lets the entry expire with datagrams queued behind it. */
void pin_neighbour(int fd, const struct sockaddr_in *to, const char *device, unsigned char hardware[6]);

/* stream.c: one TCP connection with each peer, on which blocks of the size of a
 * datagram go both ways. */

/* stream_open begins to listen. */
void stream_open(const char *device, size_t block);

/* stream_greet connects what can be connected now: guest me to every lower one.
 * Returns whether there is a connection with peer i. */
bool stream_greet(int me, int i, const struct sockaddr_in *to);

/* stream_room tells whether all earlier blocks to peer i are in the kernel, so that
 * the next may be given. It hands over what it can. */
bool stream_room(int i);

/* stream_send gives the next block for peer i. Only after stream_room. */
void stream_send(int i, const void *block);

/* stream_next reads the next whole block of peer i into block. Returns false when
 * there is none yet. */
bool stream_next(int i, void *block);

/* stream_broken counts connections that failed after they were made. */
uint64_t stream_broken(void);

/* stream_poll fills fds, of MAX_GUESTS + 1, and returns how many it filled. */
struct pollfd;
int stream_poll(struct pollfd *fds);

/* kernel.c */

/* kernel_drops is what the guest's own kernel threw away since it booted. */
struct kernel_drops {
	uint64_t udp_in_errors, udp_receive_buffer, udp_send_buffer, udp_checksum;
	uint64_t tcp_timeouts, tcp_retransmits, tcp_resets;
	uint64_t device_rx_dropped, device_tx_dropped, device_errors;
};

struct kernel_drops read_kernel_drops(const char *device);

#endif
