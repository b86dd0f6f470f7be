package guests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Native runs the guests' MPI program on this machine as one rank and returns
// its checksum, which a cluster of any size must reach, too. dir is the guest
// image's directory.
func Native(ctx context.Context, dir string, p MPI) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "native-jacobi"),
		strconv.Itoa(p.Side), strconv.Itoa(p.Iterations), strconv.Itoa(p.Every))
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
