package vmmtest

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// acceptsConnections is __SO_ACCEPTCON of include/uapi/linux/net.h.
const acceptsConnections = 1 << 16

// Listens tells whether somebody in this network namespace listens on the unix socket
// at path. A file that exists is not enough: it does from bind(2) on, and a caller that
// comes before listen(2) is refused. Nobody is connected to, as QEMU's monitor serves
// one client at a time.
func Listens(path string) (bool, error) {
	f, err := os.Open("/proc/net/unix") // Num RefCount Protocol Flags Type St Inode Path: unix(7)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 8 || fields[7] != path {
			continue
		}
		flags, err := strconv.ParseUint(fields[3], 16, 64)
		if err != nil {
			return false, fmt.Errorf("read /proc/net/unix: %w", err)
		}
		if flags&acceptsConnections != 0 {
			return true, nil
		}
	}
	return false, lines.Err()
}
