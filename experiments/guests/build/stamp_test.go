package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStamp_MatchesOnlyAWholeBuildOfTheSameInputs(t *testing.T) {
	dir := t.TempDir()
	s := stamp{text: "inputs\n"}
	for _, name := range outputs {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s.matches(dir) {
		t.Error("matches before the stamp is written")
	}
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	if !s.matches(dir) {
		t.Error("does not match its own build")
	}
	if (stamp{text: "other inputs\n"}).matches(dir) {
		t.Error("matches other inputs")
	}
	if err := os.Remove(filepath.Join(dir, outputs[1])); err != nil {
		t.Fatal(err)
	}
	if s.matches(dir) {
		t.Error("matches though an output is gone")
	}
	if err := s.remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.remove(dir); err != nil {
		t.Errorf("second removal: %v", err)
	}
}
