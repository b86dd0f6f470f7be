package lab

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"fermata/protocol/mustrun"
)

// TestUnderlay_NodesReachEachOther re-executes the test binary in a namespace
// of its own, so that nothing is made in the host's.
func TestUnderlay_NodesReachEachOther(t *testing.T) {
	mustrun.Need(t, mustrun.NetNS)
	if !inOwnNamespace() {
		cmd := exec.Command("unshare", "--net", os.Args[0], "-test.run=^TestUnderlay_NodesReachEachOther$", "-test.v")
		cmd.Env = append(os.Environ(), namespaceMark+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	u, err := newUnderlay()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	a, err := u.addNode(0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := u.addNode(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []nodeNet{a, b} {
		cmd := exec.Command("ip", "-4", "-o", "addr", "show", "eth0")
		var out strings.Builder
		cmd.Stdout = &out
		if err := startIn(want.ns, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want.addr.String()+"/24") {
			t.Errorf("node namespace shows %q, want %s", out.String(), want.addr)
		}
	}
	// Node 2 listens, node 1 speaks, over the bridge. A socket belongs to the
	// namespace of the thread that makes it.
	var l net.Listener
	err = onThread(func() error {
		if err := netns.Set(b.ns); err != nil {
			return err
		}
		l, err = net.Listen("tcp", b.addr.String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	}()
	err = onThread(func() error {
		if err := netns.Set(a.ns); err != nil {
			return err
		}
		c, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, "hello")
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "hello" {
		t.Errorf("node 2 heard %q", got)
	}
}
