/* A client of Redis over one TCP connection, in the protocol RESP2
 * (redis.io/docs/reference/protocol-spec), as far as tally needs it.
 *
 * Not for several threads. Every call that fails closes the connection; the next
 * one must be resp_open.
 */
#ifndef FERMATA_RESP_H
#define FERMATA_RESP_H

#include <stddef.h>

#define RESP_MAX_BYTES 16384 /* of one reply */

struct resp {
	int fd; /* -1: closed */
	size_t have, used;
	char buffer[RESP_MAX_BYTES];
};

/* resp_open connects to host:6379 within seconds, which bounds every later wait for
 * a reply, too. Returns 0, or -1. */
int resp_open(struct resp *r, const char *host, int seconds);

void resp_close(struct resp *r);

/* resp_send sends one inline command; it must not hold quotes or line ends.
 * Returns 0, or -1. */
int resp_send(struct resp *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* resp_receive reads the next reply: its kind ('+', '-', ':' or '$'), and its text,
 * which ends with a zero and lives until the next call. A null string is kind '0'.
 * Returns -1 when the connection ends, takes too long or says something else. */
int resp_receive(struct resp *r, char **text);

/* resp_ask is resp_send of a whole command, then resp_receive. */
int resp_ask(struct resp *r, char **text, const char *command);

#endif
