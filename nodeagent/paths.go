package nodeagent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/protocol/fault"
)

// defaultAllowedPaths are where a specification may name files unless the
// configuration says otherwise: data of services and kernels (FHS 3.0).
var defaultAllowedPaths = []string{"/srv", "/boot"}

// pathRules decide which files of this node a specification may name. Whoever may
// start a cluster could otherwise read any file of the node: the agent is root.
type pathRules struct {
	allowed  []string // directories, as configured
	reserved []string // the agent's own directories, never allowed
}

// open opens a regular file for reading.
func (r pathRules) open(path string) (*os.File, error) {
	place, err := r.find(path)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	if err := wantType(place, path, unix.S_IFREG, "a regular file"); err != nil {
		return nil, err
	}
	// Through the descriptor, so that this is the file that was looked at. Its type
	// is known: opening it has no effect but this.
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", place.Fd()))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "open %s", path)
	}
	return f, nil
}

// checkSocket refuses a path that is not a socket below an allowed directory.
func (r pathRules) checkSocket(path string) error {
	place, err := r.find(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Invalid, "no QEMU listens on %s; start it with -qmp unix:%s,server=on,wait=off", path, path)
	}
	if err != nil {
		return err
	}
	defer place.Close()
	return wantType(place, path, unix.S_IFSOCK, "a socket")
}

// find returns a descriptor that stands for the file (O_PATH): getting it touches
// no device and waits for nobody. Symbolic links are followed; where they lead must
// be allowed.
func (r pathRules) find(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		// Whether a file that may not be named exists is nobody's business.
		if !within(filepath.Clean(path), r.allowed) {
			return nil, r.denied(path, "")
		}
		return nil, fault.Wrap(fault.Invalid, &os.PathError{Op: "open", Path: path, Err: err}, "")
	}
	place := os.NewFile(uintptr(fd), path)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		err = r.check(path, real)
	}
	if err != nil {
		return nil, errors.Join(err, place.Close())
	}
	return place, nil
}

// check decides on a file by where it really lies.
func (r pathRules) check(path, real string) error {
	if !within(real, r.allowed) {
		return r.denied(path, real)
	}
	if within(real, r.reserved) {
		return fault.New(fault.Denied, "%s lies in a directory of the node agent itself", path)
	}
	return nil
}

func (r pathRules) denied(path, real string) error {
	if real != "" && real != filepath.Clean(path) {
		path += " (a link to " + real + ")"
	}
	return fault.New(fault.Denied, "%s is outside the directories that this node allows (%s); move the file, or add its directory to allowed_paths in the agent's configuration",
		path, strings.Join(r.allowed, ", "))
}

// within reports whether path lies below one of dirs, or below where they lead.
func within(path string, dirs []string) bool {
	for _, dir := range dirs {
		candidates := []string{filepath.Clean(dir)}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			candidates = append(candidates, real)
		}
		for _, d := range candidates {
			if d == "/" || path == d || strings.HasPrefix(path, d+"/") {
				return true
			}
		}
	}
	return false
}

func wantType(f *os.File, path string, want uint32, what string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != want {
		return fault.New(fault.Invalid, "%s is not %s", path, what)
	}
	return nil
}
