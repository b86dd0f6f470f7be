package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"fermata/cmd/internal/operatortest"
	"fermata/protocol/fault"
)

// TestTrace_IsPcapng reads a trace with a reader that is not ours.
func TestTrace_IsPcapng(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	for name, args := range map[string][]string{
		"file":   {"trace", "demo", "--network", "lan", "-w", path},
		"stdout": {"trace", "demo"},
		"time":   {"trace", "demo", "--for", "1h"},
	} {
		t.Run(name, func(t *testing.T) {
			r := fermata(t, operatortest.New(t), args...)
			if r.status != 0 || r.stderr != "fermata: 2 frames, 1 points of guests; the trace has lost 2\n" {
				t.Errorf("status %d, stderr %q", r.status, r.stderr)
			}
			text := r.stdout
			if name == "file" {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				text = string(b)
			}
			if got, want := readTrace(t, text), "a/net0 17 [epoch 6]; a/net0 37 [cut 7: point of guest a]; a/net0 17 [epoch 7]; "; got != want {
				t.Errorf("trace %q, want %q", got, want)
			}
		})
	}
}

// readTrace tells card, length and comment of each frame.
func readTrace(t *testing.T, text string) string {
	t.Helper()
	reader, err := pcapgo.NewNgReader(strings.NewReader(text), pcapgo.NgReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for {
		data, info, opts, err := reader.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		card, err := reader.Interface(info.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %d %v; ", card.Name, len(data), opts.Comments)
	}
}

func TestTrace_Refuses(t *testing.T) {
	if r := fermata(t, operatortest.New(t), "trace", "nope", "--network", "lan"); r.status != fault.NotFound.ExitCode() {
		t.Errorf("unknown cluster: status %d, %q", r.status, r.stderr)
	}
	if r := fermata(t, operatortest.New(t), "trace", "demo", "--for", "-1s"); r.status != fault.Invalid.ExitCode() {
		t.Errorf("negative time: status %d, %q", r.status, r.stderr)
	}
}
