/* What the parts of dirty share: the pattern of its pages and its disk records. */
#ifndef FERMATA_DIRTY_H
#define FERMATA_DIRTY_H

#include "line.h"

#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES 4096

/* page is what a page of memory, or a record on a disk, holds: which one it is,
 * how often it has been written, a checksum of the two, and words that follow
 * from that sum. So a page tells by itself whether it is whole, and its reader
 * knows to the bit what it must hold. Words differ in all their bytes:
 * neither compression nor deduplication makes such a page much smaller. */
struct page {
	uint64_t magic;
	uint64_t number;	/* from 0 */
	uint64_t generation;	/* times it was rewritten */
	uint64_t sum;
	uint64_t words[PAGE_BYTES / 8 - 4];
};

/* fault is what is wrong with a page. */
enum fault {
	FAULT_NONE,
	FAULT_STALE,	/* whole, of an earlier generation */
	FAULT_EARLY,	/* whole, of a later one */
	FAULT_MISPLACED,/* whole, another page's */
	FAULT_TORN	/* nothing that was ever written at once */
};

extern const char *const fault_names[];

/* pattern.c */

/* page_write makes *p page number of generation. */
void page_write(struct page *p, uint64_t number, uint64_t generation);

/* page_check tells whether *p is page number of generation, to the last bit. */
enum fault page_check(const struct page *p, uint64_t number, uint64_t generation);

/* records.c */

/* records writes numbered records to a device, round and round, each durable
 * before the next, and reads what it finds there first. */
struct records {
	int fd;
	uint64_t slots;		/* pages of the device in use */
	_Atomic uint64_t written;	/* records, all durable */
	_Atomic uint64_t bad;	/* slots that did not hold what was written last */
};

/* records_open takes device, or at most its first MAX_RECORDS pages. Exits the
 * program when it cannot. */
void records_open(struct records *r, const char *device);

/* records_step writes one record. */
void records_step(struct records *r);

#endif
