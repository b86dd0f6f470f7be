package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// pcFirmware is the file of a PC's firmware where none was asked for (pc_machine_done
// and x86_bios_rom_init in QEMU's hw/i386).
const pcFirmware = "bios-256k.bin"

// knownFirmware returns what a new machine of this QEMU has in a block, if that is the
// PC's firmware, and the file it comes from.
func (m *Machine) knownFirmware(ctx context.Context, b ramBlock) (data []byte, path string) {
	if b.name != "pc.bios" {
		return nil, ""
	}
	name := pcFirmware
	var asked string
	if err := m.execute(ctx, "qom-get", map[string]string{"path": "/machine", "property": "firmware"}, &asked); err == nil && asked != "" {
		name = asked
	}
	paths := []string{name}
	if !strings.ContainsRune(name, '/') {
		paths = nil
		for _, dir := range m.dataDirs(ctx) {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && uint64(len(data)) == b.used {
			return data, path
		}
	}
	return nil, ""
}

// dataDirs lists the directories in which the machine's QEMU looks for firmware: those
// of its own command line, then those that it prints.
func (m *Machine) dataDirs(ctx context.Context) (dirs []string) {
	binary := m.state.Config.Binary
	if m.state.Foreign != nil {
		binary, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", m.PID()))
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.PID()))
		args := strings.Split(string(cmdline), "\x00")
		for i, arg := range args[:max(len(args)-1, 0)] {
			if arg == "-L" {
				dirs = append(dirs, args[i+1])
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, helpTime)
	defer cancel()
	out, _ := exec.CommandContext(ctx, binary, "-L", "help").Output()
	return append(dirs, strings.Fields(string(out))...)
}

// helpTime is ample for a program that prints a few lines and ends.
const helpTime = 5 * time.Second
