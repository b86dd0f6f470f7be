package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Ports inside the lab's namespaces; each node has an address of its own.
const (
	portCoordinator = 7410
	portAgent       = 7420
	portFabric      = 7421
)

// layout is where things lie below a lab's directory.
type layout struct{ dir string }

func (l layout) socket() string     { return filepath.Join(l.dir, "coordinator.sock") }
func (l layout) certs() string      { return filepath.Join(l.dir, "certs") }
func (l layout) etcd() string       { return filepath.Join(l.dir, "etcd") }
func (l layout) repository() string { return filepath.Join(l.dir, "repository") }

// RepositoryDir is where a lab has its repository, unless it was told another place.
func RepositoryDir(dir string) string { return layout{dir}.repository() }

// RepositoryKeyFile is where a lab has the key of its repository, empty if there is
// none.
func RepositoryKeyFile(dir string) string {
	path := layout{dir}.repositoryKey()
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

func (l layout) repositoryKey() string { return filepath.Join(l.dir, "repository.key") }

// node is the directory of one node; coordinator that of the coordinator.
func (l layout) node(name string) string { return filepath.Join(l.dir, "nodes", name) }
func (l layout) coordinator() string     { return filepath.Join(l.dir, "coordinator") }

// memory is where the guests' memory of all nodes lies: on tmpfs, so outside dir.
func (l layout) memory() string {
	sum := sha256.Sum256([]byte(l.dir))
	return filepath.Join("/dev/shm", "fermata-lab-"+hex.EncodeToString(sum[:6]))
}

// nodeName returns the name of node number i, from 0.
func nodeName(i int) string { return fmt.Sprintf("n%d", i+1) }

// maxSocketPath is what sun_path takes (unix(7)), its end included.
const maxSocketPath = 107

// check refuses a directory that is too deep for the sockets in it.
func (l layout) check() error {
	for _, path := range []string{l.socket(), filepath.Join(l.etcd(), "etcd.sock")} {
		if len(path) > maxSocketPath {
			return fmt.Errorf("lab directory %s is too deep: socket path of %d bytes, at most %d", l.dir, len(path), maxSocketPath)
		}
	}
	return nil
}

// lock makes sure that one lab at a time uses the directory.
func (l layout) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock lab: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s is in use by another process: %w", l.dir, err), f.Close())
	}
	return f, nil
}
