package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// Info is what a QEMU binary can do.
type Info struct {
	Binary       string // absolute path
	Version      qmp.Version
	MachineTypes []string          // without aliases, sorted
	Aliases      map[string]string // alias to machine type
	CPUModels    []string          // sorted
	HasXenSave   bool              // the command xen-save-devices-state
	HasDgram     bool              // -netdev dgram
	HasSandbox   bool              // -sandbox: it was built with seccomp

	file binaryFile
}

// binaryFile tells one build of a binary from the next at the same path.
type binaryFile struct {
	device, inode uint64
	size          int64
	modified      unix.Timespec
}

func fileOf(path string) (binaryFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return binaryFile{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return binaryFile{device: st.Dev, inode: st.Ino, size: st.Size, modified: st.Mtim}, nil
}

// Probe asks a binary what it can do. It runs it without a machine for some
// tens of milliseconds.
func Probe(ctx context.Context, binary string) (info Info, err error) {
	path, err := findBinary(binary)
	if err != nil {
		return Info{}, err
	}
	file, err := fileOf(path)
	if err != nil {
		return Info{}, err
	}
	info = Info{Binary: path, Aliases: make(map[string]string), file: file}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mon, end, err := startProbe(ctx, path)
	if err != nil {
		return Info{}, fmt.Errorf("probe %s: %w", path, err)
	}
	defer end()
	info.Version = mon.Greeting().Version
	if err := info.ask(ctx, mon); err != nil {
		return Info{}, fmt.Errorf("probe %s: %w", path, err)
	}
	return info, nil
}

// withUs ends a process when the thread that has started it ends (PR_SET_PDEATHSIG,
// prctl(2)), as it does with an agent that is killed. A thread that a goroutine is locked
// to lives as long as the goroutine.
func withUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// startProbe starts the binary with no machine and a monitor on a socket pair.
// end kills it and waits for it.
//
// Preconditions: the caller is locked to its thread until end.
func startProbe(ctx context.Context, path string) (mon *qmp.Client, end func(), err error) {
	ours, theirs, err := streamPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	var said bytes.Buffer
	cmd := exec.Command(path, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = withUs()
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	theirs.Close() // else its end of the pair would outlive the process
	mon, err = qmp.New(ctx, ours)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, nil, fmt.Errorf("%w: %s", err, lastWords(said.Bytes()))
	}
	return mon, func() {
		mon.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}, nil
}

// streamPair returns a connected pair of unix stream sockets.
func streamPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	a, b := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor peer")
	conn, err := net.FileConn(a)
	a.Close()
	if err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	return conn.(*net.UnixConn), b, nil
}

func (i *Info) ask(ctx context.Context, mon *qmp.Client) error {
	var machines []struct {
		Name  string `json:"name"`
		Alias string `json:"alias"`
	}
	if err := mon.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return err
	}
	for _, m := range machines {
		i.MachineTypes = append(i.MachineTypes, m.Name)
		if m.Alias != "" {
			i.Aliases[m.Alias] = m.Name
		}
	}
	var named []struct {
		Name string `json:"name"`
	}
	if err := mon.Execute(ctx, "query-cpu-definitions", nil, &named); err != nil {
		return err
	}
	for _, c := range named {
		i.CPUModels = append(i.CPUModels, c.Name)
	}
	named = nil
	if err := mon.Execute(ctx, "query-commands", nil, &named); err != nil {
		return err
	}
	for _, c := range named {
		i.HasXenSave = i.HasXenSave || c.Name == "xen-save-devices-state"
	}
	var options []struct {
		Option string `json:"option"`
	}
	if err := mon.Execute(ctx, "query-command-line-options", nil, &options); err != nil {
		return err
	}
	for _, o := range options {
		i.HasSandbox = i.HasSandbox || o.Option == "sandbox"
	}
	slices.Sort(i.MachineTypes)
	slices.Sort(i.CPUModels)
	var err error
	i.HasDgram, err = hasDgram(ctx, mon)
	return err
}

// hasDgram looks for the network back ends in the schema, where enumerations
// have no names: the one that lists hubport is it.
func hasDgram(ctx context.Context, mon *qmp.Client) (bool, error) {
	var schema []struct {
		MetaType string   `json:"meta-type"`
		Values   []string `json:"values"`
		Members  []struct {
			Name string `json:"name"`
		} `json:"members"`
	}
	if err := mon.Execute(ctx, "query-qmp-schema", nil, &schema); err != nil {
		return false, err
	}
	for _, entry := range schema {
		if entry.MetaType != "enum" {
			continue
		}
		values := entry.Values
		for _, m := range entry.Members { // replaces values in newer versions
			values = append(values, m.Name)
		}
		if slices.Contains(values, "hubport") && slices.Contains(values, "dgram") {
			return true, nil
		}
	}
	return false, nil
}

// check reports everything that c asks for and the binary has not. What QEMU
// would say of each is spread over its log and stops at the first.
func (i Info) check(c Config) error {
	var p problems
	p.unless(slices.Contains(i.MachineTypes, c.Machine), "machine type %s: QEMU %s does not know it", c.Machine, i.Version)
	model, _, _ := strings.Cut(c.CPU, ",")
	p.unless(slices.Contains(i.CPUModels, model), "cpu model %s: QEMU %s does not know it", model, i.Version)
	p.unless(i.HasDgram || len(c.NICs) == 0, "network cards: QEMU %s lacks -netdev dgram (7.2 has it)", i.Version)
	p.unless(i.HasXenSave || c.Save != SaveXen, "save method xen: QEMU %s lacks xen-save-devices-state", i.Version)
	p.unless(i.HasSandbox || !c.Confine.Sandbox, "sandbox: QEMU %s was built without seccomp", i.Version)
	if err := p.join(); err != nil {
		return fmt.Errorf("%s: %w: %w", i.Binary, vmm.ErrUnsupported, err)
	}
	return nil
}

func findBinary(name string) (string, error) {
	if name == "" {
		name = DefaultBinary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find qemu: %w", err)
	}
	return path, nil
}

// lastWords returns the last lines of QEMU's log in one: it names the cause
// first and its consequence last. Warnings, of which a healthy start may have
// many, are left out.
func lastWords(log []byte) string {
	const most = 3
	var lines []string
	for line := range strings.Lines(string(log)) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, ": warning: ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-most):], "; ")
}
