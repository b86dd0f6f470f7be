#!/bin/sh
# The first program of the guests of this experiment. It fills fermata.ballast=N
# MiB of memory with random bytes, which can neither be compressed nor found
# twice, and goes on as the guests' own init. A step that fails ends the guest.
set -e
export PATH=/bin
mkdir -p /proc /filled
mount -t proc proc /proc
for word in $(cat /proc/cmdline); do
	case $word in fermata.ballast=*) mib=${word#*=} ;; esac
done
umount /proc
mount -t tmpfs -o size=100% tmpfs /filled
mknod /filled/random c 1 9
dd if=/filled/random of=/filled/pages bs=1M count="$mib" 2>/dev/null
exec /init
