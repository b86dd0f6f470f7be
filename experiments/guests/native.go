package guests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Native runs the guests' MPI program on this machine as one rank and returns
// its checksum, which a cluster of any size must reach, too. dir is the guest
// image's directory.
func Native(ctx context.Context, dir string, p MPI) (checksum string, err error) {
	// Open MPI leaves the directories of its session behind.
	session, err := os.MkdirTemp("", "fermata-mpi-")
	if err != nil {
		return "", fmt.Errorf("make directory of the native run: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(session)) }()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "native-jacobi"),
		strconv.Itoa(p.Side), strconv.Itoa(p.Iterations), strconv.Itoa(p.Every))
	cmd.Env = append(os.Environ(), "TMPDIR="+session)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w", cmd.Path, errors.Join(err, errors.New(strings.TrimSpace(complaints.String()))))
	}
	for text := range strings.Lines(out.String()) {
		if line, ok := Parse(text); ok {
			if done, ok := line.Body.(MPIDone); ok {
				return done.Checksum, nil
			}
		}
	}
	return "", fmt.Errorf("run %s: no result in its output", cmd.Path)
}
