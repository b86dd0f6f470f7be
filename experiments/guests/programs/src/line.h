/* Console lines: what the programs of a guest tell the outside.
 *
 * A line is
 *
 *	FERMATA KIND key=value key=value #xxxxxxxx\n
 *
 * where xxxxxxxx is the FNV-1a hash (32 bits, hex) of everything before " #".
 * A console may begin in the middle of a line after a restart, and the kernel may
 * write between two of ours: the hash tells a whole line from such a mixture.
 */
#ifndef FERMATA_LINE_H
#define FERMATA_LINE_H

#include <stddef.h>
#include <stdint.h>

/* LINE_MAX_BYTES bounds a line with its hash and newline. It is small enough
 * that the tty layer takes a line in one piece (n_tty writes up to 2 KiB under
 * one lock), so lines of different programs do not mix. */
#define LINE_MAX_BYTES 1024

/* line_open chooses where lines go: a path such as /dev/console, or NULL for
 * standard output. Exits the program when path cannot be opened. */
void line_open(const char *path);

/* line_say writes one line; the format yields the KIND and the pairs. */
void line_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* fnv1a_32 and fnv1a_64 are the Fowler-Noll-Vo hashes of n bytes. */
uint32_t fnv1a_32(const void *bytes, size_t n);
uint64_t fnv1a_64(const void *bytes, size_t n);

/* uptime_seconds is CLOCK_MONOTONIC, which stands still while the guest does. */
double uptime_seconds(void);

#endif
