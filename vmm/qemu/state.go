package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fermata/vmm"
)

// stateVersion changes when an older agent could no longer attach, see
// firstNICFile.
const stateVersion = 1

// State is the record by which a machine is found again after its agent was
// restarted. It holds no secret and marshals to JSON.
type State struct {
	Version     int         `json:"version"`
	PID         int         `json:"pid"`
	Started     uint64      `json:"started"` // clock ticks since boot, from /proc/PID/stat
	BootID      string      `json:"boot_id"` // of the host
	Config      Config      `json:"config"`  // as launched, choices made
	Description Description `json:"description"`

	MemoryPath  string `json:"memory_path"`
	MemoryInode uint64 `json:"memory_inode"` // tells our RAM file from a later one of that name
	QMPPath     string `json:"qmp_path"`
	GuardPath   string `json:"guard_path"` // a second monitor, for a guard process
	ConsolePath string `json:"console_path"`
	LogPath     string `json:"log_path"` // what QEMU itself said

	// Foreign is set for a machine that somebody else started; it has no RAM file,
	// console and log of ours, and its sockets are not ours to remove.
	Foreign *Foreign `json:"foreign,omitempty"`
}

func newState(c Config, d Description, pid int) (State, error) {
	ram, err := fileOf(c.memoryPath())
	if err != nil {
		return State{}, err
	}
	stat, err := readStat(pid)
	if err != nil {
		return State{}, err
	}
	boot, err := bootID()
	if err != nil {
		return State{}, err
	}
	return State{
		Version: stateVersion, PID: pid, Started: stat.started, BootID: boot,
		Config: c, Description: d,
		MemoryPath: c.memoryPath(), MemoryInode: ram.inode,
		QMPPath: c.qmpPath(), GuardPath: c.guardPath(),
		ConsolePath: c.consolePath(), LogPath: c.logPath(),
	}, nil
}

// open finds the state's process, or reports vmm.ErrGone.
func (s State) open() (*process, error) {
	if s.Version != stateVersion {
		return nil, fmt.Errorf("state of version %d, known is %d: %w", s.Version, stateVersion, vmm.ErrUnsupported)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if s.BootID != boot {
		return nil, fmt.Errorf("process %d ran before the host was booted: %w", s.PID, vmm.ErrGone)
	}
	return openProcess(s.PID, s.Started)
}

// ReadState returns the record that Launch left in a machine's directory. An
// agent that died before it had journalled the State of a new machine finds the
// orphan by it.
func ReadState(dir string) (State, error) {
	var s State
	b, err := os.ReadFile(Config{Dir: dir}.statePath())
	if err != nil {
		return State{}, fmt.Errorf("read machine state: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("read machine state in %s: %w", dir, err)
	}
	return s, nil
}

// write replaces the record in the machine's directory whole. It is not
// synced: after a power failure the process it speaks of is gone as well.
func (s State) write() error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("write machine state: %w", err)
	}
	path := s.Config.statePath()
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("write machine state: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write machine state: %w", err)
	}
	return nil
}

// Clean removes what a machine that has ended left on the host, RAM included;
// its logs stay. It refuses while the process lives. It is idempotent, and
// leaves a later machine in the same directory alone.
func (s State) Clean() error {
	p, err := s.open()
	if err == nil {
		return errors.Join(fmt.Errorf("clean up after %s: process %d lives", s.Config.Name, s.PID), p.release())
	}
	if !errors.Is(err, vmm.ErrGone) {
		return err
	}
	return s.remove()
}

// remove deletes the machine's files, and no file of a machine that came after
// it. The record goes last: by it the others are found again when we die in
// between.
//
// Preconditions: the process has ended.
func (s State) remove() error {
	if s.Foreign != nil {
		return s.forget()
	}
	if ram, err := fileOf(s.MemoryPath); err == nil && ram.inode == s.MemoryInode {
		if err := removeFiles(s.MemoryPath); err != nil {
			return err
		}
	}
	now, err := ReadState(s.Config.Dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !now.sameProcess(s)) {
		return nil // removed before
	}
	if err != nil {
		return err
	}
	if err := s.Config.Confine.removeCgroup(); err != nil {
		return err
	}
	return removeFiles(s.QMPPath, s.GuardPath, s.Config.agentPath(), s.Config.toolPath(), s.Config.disksPath(),
		s.Config.migratedPath(), s.Config.migratedPath()+".tmp",
		s.Config.statePath()+".tmp", s.Config.statePath())
}

// forget removes the record alone.
func (s State) forget() error { return removeFiles(s.Config.statePath()+".tmp", s.Config.statePath()) }

func (s State) sameProcess(o State) bool {
	return s.PID == o.PID && s.Started == o.Started && s.BootID == o.BootID
}

// removeFiles removes what is there of the paths, in order.
func removeFiles(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
