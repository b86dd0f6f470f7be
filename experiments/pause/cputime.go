package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor times in /proc: USER_HZ, which is 100 in every
// kernel for x86 (proc(5)).
const tick = time.Second / 100

// cpuTime is what the processes have used of processors until now, in user and
// system mode, with their children that have ended.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("processor time: %w", err)
		}
		used, err := parseStat(string(b))
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		sum += used
	}
	return sum, nil
}

// parseStat adds up utime, stime, cutime and cstime, fields 14 to 17 of
// /proc/PID/stat (proc_pid_stat(5)). The second field may hold anything, in
// parentheses.
func parseStat(text string) (time.Duration, error) {
	const behindName, first, last = 3, 14, 17
	at := strings.LastIndex(text, ") ")
	if at < 0 {
		return 0, errors.New("no name in its stat")
	}
	fields := strings.Fields(text[at+2:])
	if len(fields) <= last-behindName {
		return 0, fmt.Errorf("%d fields in its stat", len(fields))
	}
	var sum time.Duration
	for _, field := range fields[first-behindName : last-behindName+1] {
		n, err := strconv.ParseUint(field, 10, 63)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
