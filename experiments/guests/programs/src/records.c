/* records.c keeps a disk busy with numbered records. */
#include "dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* MAX_RECORDS bounds a round to 4 MiB, so that a run of seconds reads what an
 * earlier round wrote. */
#define MAX_RECORDS 1024

static void give_up(const char *what)
{
	fprintf(stderr, "dirty: %s: %s\n", what, strerror(errno));
	exit(2);
}

void records_open(struct records *r, const char *device)
{
	off_t size;

	/* Without the page cache, so that reading asks the disk. */
	r->fd = open(device, O_RDWR | O_DIRECT);
	if (r->fd < 0)
		give_up(device);
	size = lseek(r->fd, 0, SEEK_END);
	if (size < 0)
		give_up(device);
	r->slots = (uint64_t)size / PAGE_BYTES;
	if (r->slots > MAX_RECORDS)
		r->slots = MAX_RECORDS;
	if (r->slots == 0) {
		fprintf(stderr, "dirty: %s has no room for a record\n", device);
		exit(2);
	}
}

void records_step(struct records *r)
{
	static struct page record __attribute__((aligned(PAGE_BYTES)));
	uint64_t slot = r->written % r->slots, round = r->written / r->slots;
	off_t at = (off_t)(slot * PAGE_BYTES);

	/* What lies there before the first round is not ours. */
	if (round > 0) {
		if (pread(r->fd, &record, sizeof record, at) != sizeof record)
			give_up("read a record");
		if (page_check(&record, r->written - r->slots, round - 1) != FAULT_NONE)
			r->bad++;
	}
	page_write(&record, r->written, round);
	if (pwrite(r->fd, &record, sizeof record, at) != sizeof record)
		give_up("write a record");
	if (fdatasync(r->fd) != 0)
		give_up("make a record durable");
	r->written++;
}
