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

/* snmp_value finds the number called name in a file in the manner of /proc/net/snmp:
 * two lines a table, the first with names, the second with numbers. */
static uint64_t snmp_value(const char *path, const char *table, const char *name)
{
	char names[4096], numbers[4096], have[64];
	unsigned long long v = 0;
	FILE *f = fopen(path, "r");

	if (f == NULL)
		return 0;
	while (fgets(names, sizeof names, f) != NULL && fgets(numbers, sizeof numbers, f) != NULL) {
		const char *n = names, *m = numbers;
		int skip;

		if (strncmp(names, table, strlen(table)) != 0)
			continue;
		n += strcspn(n, " ");
		m += strcspn(m, " ");
		while (sscanf(n, " %63s%n", have, &skip) == 1) {
			n += skip;
			if (sscanf(m, " %llu%n", &v, &skip) != 1)
				break;
			m += skip;
			if (strcmp(have, name) == 0) {
				fclose(f);
				return v;
			}
		}
	}
	fclose(f);
	return 0;
}

struct kernel_drops read_kernel_drops(const char *device)
{
	static const char snmp[] = "/proc/net/snmp", netstat[] = "/proc/net/netstat";
	struct kernel_drops d = {
		.udp_in_errors = snmp_value(snmp, "Udp:", "InErrors"),
		.udp_receive_buffer = snmp_value(snmp, "Udp:", "RcvbufErrors"),
		.udp_send_buffer = snmp_value(snmp, "Udp:", "SndbufErrors"),
		.udp_checksum = snmp_value(snmp, "Udp:", "InCsumErrors"),
		.tcp_timeouts = snmp_value(netstat, "TcpExt:", "TCPTimeouts"),
		.tcp_retransmits = snmp_value(snmp, "Tcp:", "RetransSegs"),
		.tcp_resets = snmp_value(snmp, "Tcp:", "EstabResets"),
		.device_rx_dropped = read_number(device, "rx_dropped"),
		.device_tx_dropped = read_number(device, "tx_dropped"),
		.device_errors = read_number(device, "rx_errors") + read_number(device, "tx_errors"),
	};

	return d;
}
