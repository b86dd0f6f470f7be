package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGenerated_IsFresh generates protocol/api anew and compares.
func TestGenerated_IsFresh(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is not installed")
	}
	tools, out := t.TempDir(), t.TempDir()
	run(t, "go", "build", "-o", tools+string(filepath.Separator),
		"google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")
	run(t, "protoc", "-I", "protocol/api",
		"--plugin="+filepath.Join(tools, "protoc-gen-go"), "--plugin="+filepath.Join(tools, "protoc-gen-go-grpc"),
		"--go_out="+out, "--go_opt=paths=source_relative",
		"--go-grpc_out="+out, "--go-grpc_opt=paths=source_relative", "fermata.proto")
	for _, name := range []string{"fermata.pb.go", "fermata_grpc.pb.go"} {
		want := withoutProtocVersion(t, filepath.Join(out, name))
		if withoutProtocVersion(t, filepath.Join(root(t), "protocol", "api", name)) != want {
			t.Errorf("protocol/api/%s is not what fermata.proto generates\n\twhy: the code would speak another wire than the definition says\n\tinstead: run make gen, and change the definition, never the generated code", name)
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}

// withoutProtocVersion reads a generated file but for the comment with the
// version of protoc, which go.mod does not pin.
func withoutProtocVersion(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "//") && strings.Contains(line, "protoc ") {
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}
