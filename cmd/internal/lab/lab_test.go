package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A lab that cannot start leaves nothing where its guests' memory would be.
func TestRun_FailureLeavesNothingOutsideItsDirectory(t *testing.T) {
	t.Setenv(namespaceMark, "1") // it ends before it needs one
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: filepath.Join(dir, "lab"), Repository: filepath.Join(file, "repository")}
	err := Run(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Fatalf("a repository below a file: %v", err)
	}
	if _, err := os.Stat(layout{cfg.Dir}.memory()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want nothing there", layout{cfg.Dir}.memory(), err)
	}
}
