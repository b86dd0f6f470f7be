/* jacobi relaxes the heat equation on an N x N grid with MPI.
 *
 *	jacobi [-o CONSOLE] [-r RESULT] N ITERATIONS EVERY
 *
 * Rows are split among the ranks. Each iteration exchanges halo rows with the
 * neighbours and finds the largest change with a reduction over all ranks, so
 * one lost or doubled message of the network below shows as a hang or as another
 * result. Every EVERY iterations rank 0 writes an MPI-ITER line, at the end
 * MPI-DONE, to the console and again to the file RESULT.
 *
 * The checksum is bitwise the same for any number of ranks: a point's new value
 * depends on its four neighbours alone, the residual is a maximum (max has no
 * rounding and no order), and the checksum is a sum of row hashes modulo 2^64.
 */
#include "line.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct grid {
	long n;			/* points a side, boundary excluded */
	long first, rows;	/* this rank's rows: first .. first+rows-1 of 0 .. n-1 */
	double *now, *next;	/* (rows+2) x (n+2), halo and boundary included */
	int up, down;		/* neighbour ranks or MPI_PROC_NULL */
};

/* wait_gently completes requests without keeping the processor busy. Guests
 * share host cores, and a rank that spins takes the core of the very rank it
 * waits for. */
static void wait_gently(int count, MPI_Request *requests)
{
	static const struct timespec pause = { 0, 50000 };
	int spins = 0, done = 0;

	for (;;) {
		MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
		if (done)
			return;
		if (++spins > 20)
			nanosleep(&pause, NULL);
	}
}

static double *row(double *cells, const struct grid *g, long i)
{
	return cells + i * (g->n + 2);
}

/* boundary_at gives the fixed temperature around the grid: exact fractions,
 * different on each side, so that no symmetry hides a swapped row. */
static double boundary_at(long n, long i, long j)
{
	if (i < 0)
		return 1.0 + (double)(j % 17) / 16.0;
	if (i >= n)
		return (double)(j % 5) / 4.0;
	if (j < 0)
		return (double)(i % 9) / 8.0;
	return 2.0 - (double)(i % 3) / 2.0;
}

static void fill(struct grid *g)
{
	for (long r = 0; r < g->rows + 2; r++) {
		long i = g->first + r - 1;
		for (long c = 0; c < g->n + 2; c++) {
			long j = c - 1;
			int edge = i < 0 || i >= g->n || j < 0 || j >= g->n;
			double v = edge ? boundary_at(g->n, i, j) : 0.0;
			row(g->now, g, r)[c] = v;
			row(g->next, g, r)[c] = v;
		}
	}
}

static void exchange_halo(struct grid *g)
{
	MPI_Request req[4];
	int n = (int)g->n;

	MPI_Irecv(row(g->now, g, 0) + 1, n, MPI_DOUBLE, g->up, 1, MPI_COMM_WORLD, &req[0]);
	MPI_Irecv(row(g->now, g, g->rows + 1) + 1, n, MPI_DOUBLE, g->down, 2, MPI_COMM_WORLD, &req[1]);
	MPI_Isend(row(g->now, g, 1) + 1, n, MPI_DOUBLE, g->up, 2, MPI_COMM_WORLD, &req[2]);
	MPI_Isend(row(g->now, g, g->rows) + 1, n, MPI_DOUBLE, g->down, 1, MPI_COMM_WORLD, &req[3]);
	wait_gently(4, req);
}

/* relax computes one iteration of this rank's rows and returns the largest
 * change. */
static double relax(struct grid *g)
{
	double largest = 0.0;

	for (long r = 1; r <= g->rows; r++) {
		const double *above = row(g->now, g, r - 1);
		const double *here = row(g->now, g, r);
		const double *below = row(g->now, g, r + 1);
		double *out = row(g->next, g, r);

		for (long c = 1; c <= g->n; c++) {
			double v = 0.25 * ((above[c] + below[c]) + (here[c - 1] + here[c + 1]));
			double change = v > here[c] ? v - here[c] : here[c] - v;
			if (change > largest)
				largest = change;
			out[c] = v;
		}
	}
	double *swap = g->now;
	g->now = g->next;
	g->next = swap;
	return largest;
}

static double largest_of_all(double mine)
{
	double all = 0.0;
	MPI_Request req;

	MPI_Iallreduce(&mine, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD, &req);
	wait_gently(1, &req);
	return all;
}

static uint64_t checksum_of_all(struct grid *g)
{
	uint64_t mine = 0, all = 0;
	MPI_Request req;

	for (long r = 1; r <= g->rows; r++) {
		uint64_t parts[2];
		parts[0] = (uint64_t)(g->first + r - 1);
		parts[1] = fnv1a_64(row(g->now, g, r) + 1, (size_t)g->n * sizeof(double));
		mine += fnv1a_64(parts, sizeof parts);
	}
	MPI_Iallreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD, &req);
	wait_gently(1, &req);
	return all;
}

static long positive(const char *text, const char *what)
{
	char *end;
	long v = strtol(text, &end, 10);

	if (*end != '\0' || v < 1) {
		fprintf(stderr, "jacobi: %s: %s\n", what, text);
		exit(2);
	}
	return v;
}

static void lay_out(struct grid *g, int rank, int ranks)
{
	long share = g->n / ranks, extra = g->n % ranks;
	size_t cells;

	g->rows = share + (rank < extra ? 1 : 0);
	g->first = rank * share + (rank < extra ? rank : extra);
	g->up = rank > 0 ? rank - 1 : MPI_PROC_NULL;
	g->down = rank < ranks - 1 ? rank + 1 : MPI_PROC_NULL;
	cells = (size_t)(g->rows + 2) * (size_t)(g->n + 2);
	g->now = malloc(cells * sizeof *g->now);
	g->next = malloc(cells * sizeof *g->next);
	if (g->now == NULL || g->next == NULL) {
		fprintf(stderr, "jacobi: no memory for %zu cells\n", cells);
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
}

static void finish(const struct grid *g, long iterations, int ranks, double residual, uint64_t sum,
		   double seconds, const char *result)
{
	for (int copies = 0; copies < (result != NULL ? 2 : 1); copies++) {
		if (copies == 1)
			line_open(result);
		line_say("MPI-DONE n=%ld iterations=%ld ranks=%d residual=%a checksum=%016llx seconds=%.3f",
			 g->n, iterations, ranks, residual, (unsigned long long)sum, seconds);
	}
}

int main(int argc, char **argv)
{
	struct grid g = { 0 };
	int rank, ranks, arg = 1;
	double residual = 0.0;

	const char *console = NULL, *result = NULL;

	MPI_Init(&argc, &argv);
	for (; argc > arg + 1 && argv[arg][0] == '-'; arg += 2) {
		if (strcmp(argv[arg], "-o") == 0)
			console = argv[arg + 1];
		else if (strcmp(argv[arg], "-r") == 0)
			result = argv[arg + 1];
		else
			break;
	}
	if (argc != arg + 3) {
		fprintf(stderr, "usage: jacobi [-o CONSOLE] [-r RESULT] N ITERATIONS EVERY\n");
		return 2;
	}
	g.n = positive(argv[arg], "grid size");
	long iterations = positive(argv[arg + 1], "iterations");
	long every = positive(argv[arg + 2], "every");

	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	if (g.n < ranks) {
		fprintf(stderr, "jacobi: %ld rows for %d ranks\n", g.n, ranks);
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	lay_out(&g, rank, ranks);
	fill(&g);

	double begun = uptime_seconds();
	if (rank == 0) {
		line_open(console);
		line_say("MPI-START n=%ld iterations=%ld ranks=%d uptime=%.3f", g.n, iterations, ranks, begun);
	}
	for (long i = 1; i <= iterations; i++) {
		exchange_halo(&g);
		residual = largest_of_all(relax(&g));
		if (i % every != 0 || i == iterations)
			continue;
		uint64_t sum = checksum_of_all(&g);
		if (rank == 0)
			line_say("MPI-ITER iteration=%ld residual=%a checksum=%016llx uptime=%.3f",
				 i, residual, (unsigned long long)sum, uptime_seconds());
	}
	uint64_t sum = checksum_of_all(&g);
	if (rank == 0)
		finish(&g, iterations, ranks, residual, sum, uptime_seconds() - begun, result);
	MPI_Finalize();
	return 0;
}
