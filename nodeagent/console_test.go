package nodeagent

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"fermata/protocol/api"
)

// A guest that prints without end takes bounded room. What is kept is the newest part,
// whole and at its offsets.
func TestConsole_TakesBoundedRoom(t *testing.T) {
	b := newBench(t, 1)
	b.agent.cfg.ConsoleBytes = 256 << 10
	path := b.machines[0].ConsolePath()
	if err := b.machines[0].Stop(t.Context()); err != nil { // what it says itself would come between
		t.Fatal(err)
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0) // as QEMU
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		piece := bytes.Repeat(fmt.Appendf(nil, "line of piece %3d\n", i), 2000)
		if _, err := out.Write(piece); err != nil {
			t.Fatal(err)
		}
		said = append(said, piece...)
		b.agent.trimConsole(b.cluster.list()[0])
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > b.agent.cfg.ConsoleBytes {
			t.Fatalf("console takes %d bytes after %d, limit %d", st.Blocks*512, len(said), b.agent.cfg.ConsoleBytes)
		}
	}
	for _, from := range []uint64{0, uint64(len(said)) - 100} {
		var got []byte
		first := uint64(0)
		err := b.agent.ReadConsole(t.Context(), &api.ConsoleRequest{Cluster: "c", Guest: "g1", Offset: from}, func(c *api.ConsoleChunk) error {
			if got == nil {
				first = c.Offset
			}
			got = append(got, c.Data...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if first < from || !bytes.Equal(got, said[first:]) || len(got) < min(int(b.agent.cfg.ConsoleBytes)/4, len(said)-int(from)) {
			t.Errorf("read from %d: %d bytes from %d on, want the newest of %d", from, len(got), first, len(said))
		}
	}
}
