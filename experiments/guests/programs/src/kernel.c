/* kernel.c reads what the guest's kernel dropped, so that such a loss is not
 * blamed on the wire. */
#include "canary.h"

#include <stdio.h>
#include <string.h>

static uint64_t read_number(const char *device, const char *name)
{
	char path[128];
	unsigned long long v = 0;

	snprintf(path, sizeof path, "/sys/class/net/%s/statistics/%s", device, name);
	FILE *f = fopen(path, "r");
	if (f == NULL)
		return 0;
	if (fscanf(f, "%llu", &v) != 1)
		v = 0;
	fclose(f);
	return v;
}

/* snmp_value finds the number under heading name in two lines of
 * /proc/net/snmp, the first with names, the second with numbers. */
static uint64_t snmp_value(const char *names, const char *numbers, const char *name)
{
	char have[32];
	unsigned long long v;
	int skip;

	names += strcspn(names, " ");
	numbers += strcspn(numbers, " ");
	while (sscanf(names, " %31s%n", have, &skip) == 1) {
		names += skip;
		if (sscanf(numbers, " %llu%n", &v, &skip) != 1)
			return 0;
		numbers += skip;
		if (strcmp(have, name) == 0)
			return v;
	}
	return 0;
}

struct kernel_drops read_kernel_drops(const char *device)
{
	struct kernel_drops d = {
		.device_rx_dropped = read_number(device, "rx_dropped"),
		.device_tx_dropped = read_number(device, "tx_dropped"),
		.device_errors = read_number(device, "rx_errors") + read_number(device, "tx_errors"),
	};
	char names[512], numbers[512];
	FILE *f = fopen("/proc/net/snmp", "r");

	if (f == NULL)
		return d;
	while (fgets(names, sizeof names, f) != NULL && fgets(numbers, sizeof numbers, f) != NULL) {
		if (strncmp(names, "Udp:", 4) != 0)
			continue;
		d.udp_in_errors = snmp_value(names, numbers, "InErrors");
		d.udp_receive_buffer = snmp_value(names, numbers, "RcvbufErrors");
		d.udp_send_buffer = snmp_value(names, numbers, "SndbufErrors");
		d.udp_checksum = snmp_value(names, numbers, "InCsumErrors");
	}
	fclose(f);
	return d;
}
