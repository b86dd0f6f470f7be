package result

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// UnknownCommit stands where there is no repository to ask.
const UnknownCommit = "unknown"

// kept is where results are kept: they say nothing about what was measured, and
// writing one there must not make its own commit look modified.
const kept = ":(top,exclude)experiments/results"

// Commit names the commit of the working tree in dir, with "-modified" behind
// it when tracked files differ from it, kept results aside. Without git or
// without a repository it is UnknownCommit.
func Commit(ctx context.Context, dir string) (string, error) {
	name, err := git(ctx, dir, "rev-parse", "--short=12", "HEAD")
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.As(err, &exit):
		return UnknownCommit, ctx.Err()
	case err != nil:
		return "", err
	}
	changes, err := git(ctx, dir, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", kept)
	if err != nil {
		return "", err
	}
	if changes != "" {
		name += "-modified"
	}
	return name, nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}
