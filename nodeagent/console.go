package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

const (
	// maxChunk bounds one piece of console output on the wire.
	maxChunk = 64 << 10
	// consolePoll spaces looks at a console that is followed.
	consolePoll = 100 * time.Millisecond
	// trimPoll spaces looks at how much consoles have grown. What a guest prints in one
	// such time, by an emulated serial port a few MiB, comes on top of the limit.
	trimPoll = time.Second
	// defaultConsoleBytes is some 700,000 lines.
	defaultConsoleBytes = 64 << 20
	// minConsoleBytes is what file systems free space in, a few times.
	minConsoleBytes = 64 << 10
	punchAlign      = 4096
)

// ReadConsole sends what a guest printed from offset on; with follow it goes on
// until ctx ends or the guest is gone. What is not kept any more is left out: each chunk
// says where it begins.
func (a *Agent) ReadConsole(ctx context.Context, req *api.ConsoleRequest, send func(*api.ConsoleChunk) error) error {
	g, err := a.findGuest(req.GetCluster(), req.GetGuest())
	if err != nil {
		return err
	}
	if g.machine.ConsolePath() == "" {
		return fault.New(fault.Invalid, "guest %s was adopted: what it prints goes where whoever started it has sent it", req.Guest)
	}
	f, err := os.Open(g.machine.ConsolePath())
	if err != nil {
		return fmt.Errorf("open console of guest %s: %w", req.Guest, err)
	}
	defer f.Close()
	if req.Offset > 1<<62 {
		return fault.New(fault.Invalid, "console offset %d: too large", req.Offset)
	}
	offset := int64(req.Offset)
	buf := make([]byte, maxChunk)
	for ended := false; ; {
		n, at, err := readKept(f, buf, offset)
		if n > 0 {
			offset = at + int64(n)
			if err := send(&api.ConsoleChunk{Data: buf[:n], Offset: uint64(at)}); err != nil {
				return err
			}
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read console of guest %s: %w", req.Guest, err)
		}
		if !req.Follow || ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.machine.Exited():
			ended = true // what it printed last is still to be read
		case <-time.After(consolePoll):
		}
	}
}

// readKept reads from the first byte at or behind offset that is kept, and returns where
// that is.
func readKept(f *os.File, b []byte, offset int64) (n int, at int64, err error) {
	for {
		at, err = nextKept(f, offset)
		if err != nil {
			return 0, offset, err
		}
		if n, err = f.ReadAt(b, at); n == 0 {
			return 0, at, err
		}
		// It may have been trimmed while it was read, and then reads as zeros.
		if now, err := nextKept(f, at); err == nil && now == at {
			return n, at, nil
		}
		offset = at
	}
}

// nextKept returns the first byte at or behind offset that is no hole; io.EOF: none.
func nextKept(f *os.File, offset int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return offset, io.EOF
	case errors.Is(err, unix.EINVAL): // a file system without holes
		return offset, nil
	}
	return at, err
}

// trimConsoles keeps what guests and their QEMUs print within its limit, until ctx ends: a
// guest must not fill the file system that the journal is on.
func (a *Agent) trimConsoles(ctx context.Context) {
	ticker := time.NewTicker(trimPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, c := range a.allClusters() {
			for _, g := range c.list() {
				if !adopted(g) {
					a.trimConsole(g)
				}
			}
		}
	}
}

func (a *Agent) trimConsole(g *guest) {
	for _, path := range []string{g.machine.ConsolePath(), g.machine.State().LogPath} {
		if err := trim(path, a.cfg.ConsoleBytes); err != nil && !errors.Is(err, os.ErrNotExist) {
			a.log.Error("console cannot be trimmed", "cluster", g.cluster, "guest", g.spec.Name, "error", err)
		}
	}
}

// trim frees the beginning of a file that takes more room than limit, up to the newest half
// of that. The file keeps its size, with a hole at its beginning, so an offset in it means
// the same before and after, and QEMU goes on writing to it.
func trim(path string, limit int64) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Blocks*512 <= limit {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	end := (st.Size - limit/2) &^ (punchAlign - 1)
	if end <= 0 {
		return nil // blocks that the file system has taken in advance
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(0) // QEMU appends
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return nil
}
