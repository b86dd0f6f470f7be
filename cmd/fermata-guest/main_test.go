package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/guestport"
)

// host answers like an agent. Before each answer it says something for nobody.
type host struct {
	mu       sync.Mutex
	requests []guestport.Request // guarded by mu
	life     uint64              // guarded by mu
	mute     bool                // guarded by mu
	asked    chan struct{}       // gets a value for each request, if somebody waits
}

func (h *host) open(context.Context) (port, error) {
	ours, theirs := net.Pipe()
	go h.serve(theirs)
	return ours, nil
}

func (h *host) serve(conn net.Conn) {
	defer conn.Close()
	r := guestport.NewReader(conn)
	for {
		var req guestport.Request
		if guestport.Read(r, &req) != nil {
			return
		}
		h.mu.Lock()
		h.requests = append(h.requests, req)
		reply, mute := guestport.Reply{ID: req.ID, Life: h.life, Ranges: req.Ranges}, h.mute
		h.mu.Unlock()
		select {
		case h.asked <- struct{}{}:
		default:
		}
		if mute {
			continue
		}
		if err := req.Validate(); err != nil {
			reply.Error = err.Error()
		}
		_, err := conn.Write([]byte("half a line of somebody else\n"))
		err = errors.Join(err, guestport.Write(conn, guestport.Reply{ID: "another", Life: 99}), guestport.Write(conn, reply))
		if err != nil {
			return
		}
	}
}

func (h *host) run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, complaint bytes.Buffer
	status = run(t.Context(), args, h.open, &out, &complaint)
	return status, out.String(), complaint.String()
}

func TestRun_AsksAndPrints(t *testing.T) {
	h := &host{life: 3}
	status, out, complaint := h.run(t, "hide", "--physical", "0x20000000+65536", "--physical", "4096+4096")
	var reply guestport.Reply
	if err := json.Unmarshal([]byte(out), &reply); err != nil || status != 0 || complaint != "" {
		t.Fatalf("%d, %q, %q, %v", status, out, complaint, err)
	}
	want := []guestport.Range{{Start: 0x20000000, Bytes: 65536}, {Start: 4096, Bytes: 4096}}
	if reply.Life != 3 || len(reply.Ranges) != 2 || reply.Ranges[0] != want[0] || reply.Ranges[1] != want[1] || h.requests[0].Do != guestport.Hide {
		t.Errorf("%+v", reply)
	}
	if status, _, complaint := h.run(t, "show", "--physical", "7+4096"); status != 1 || !strings.Contains(complaint, "whole pages") {
		t.Errorf("%d, %q", status, complaint)
	}
}

func TestRun_Usage(t *testing.T) {
	for _, args := range []string{
		"", "conceal", "hide", "hide --pid 1", "hide --pid 1 --bytes 4096 --physical 0+4096", "hide --physical 12", "status --pid 1",
		"status more", "watch --every 0s", "status --timeout -1s", "hide --nonsense",
	} {
		status, out, complaint := new(host).run(t, strings.Fields(args)...)
		if status != 2 || out != "" || !strings.Contains(complaint, "usage:") {
			t.Errorf("%q: %d, %q, %q", args, status, out, complaint)
		}
	}
	if status, _, complaint := new(host).run(t, "hide", "--help"); status != 0 || !strings.Contains(complaint, "usage:") {
		t.Errorf("help: %d, %q", status, complaint)
	}
}

func TestRun_HostIsMute(t *testing.T) {
	if status, _, complaint := (&host{mute: true}).run(t, "status", "--timeout", "50ms"); status != 1 || !strings.Contains(complaint, "does not answer") {
		t.Errorf("%d, %q", status, complaint)
	}
}

// TestWatch_TellsOfEachLife: once a restart, and not of silence in between.
func TestWatch_TellsOfEachLife(t *testing.T) {
	h := &host{life: 3, asked: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	var out bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"watch", "--every", "1ms", "--timeout", "20ms"}, h.open, &out, &out)
	}()
	await := func() {
		for range 3 {
			select {
			case <-h.asked:
			case <-time.After(20 * time.Second):
				t.Fatal("it does not ask")
			}
		}
	}
	for _, change := range []func(){func() {}, func() { h.life = 5 }, func() { h.mute = true }, func() { h.mute, h.life = false, 8 }} {
		h.mu.Lock()
		change()
		h.mu.Unlock()
		await()
	}
	stop()
	if status := <-ended; status != 0 {
		t.Errorf("status %d", status)
	}
	var lives []uint64
	for line := range strings.Lines(out.String()) {
		var reply guestport.Reply
		if err := json.Unmarshal([]byte(line), &reply); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lives = append(lives, reply.Life)
	}
	if len(lives) != 2 || lives[0] != 5 || lives[1] != 8 {
		t.Errorf("told of %v", lives)
	}
}

func TestPhysical(t *testing.T) {
	const pages = 5
	b, err := unix.Mmap(-1, 0, pages*guestport.PageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	at := addressOf(b)
	look := func(from, n uint64) ([]guestport.Range, error) {
		return physical(os.Getpid(), at+from*guestport.PageBytes, n*guestport.PageBytes)
	}
	if _, err := look(0, pages); err == nil || !strings.Contains(err.Error(), "not present") {
		t.Errorf("memory that nobody has touched: %v", err)
	}
	_ = b[0] + b[guestport.PageBytes] // the page of zeros stands for them
	if _, err := look(0, 1); err == nil || !strings.Contains(err.Error(), "shared") && !strings.Contains(err.Error(), "not present") {
		t.Errorf("memory that was only read: %v", err)
	}
	for i := range b {
		b[i] = 1
	}
	if err := unix.Mlock(b); err != nil {
		t.Fatal(err)
	}
	ranges, err := look(0, pages)
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, r := range ranges {
		sum += r.Bytes
		if r.Start == 0 || r.Start%guestport.PageBytes != 0 {
			t.Errorf("%+v", r)
		}
	}
	if sum != uint64(len(b)) {
		t.Errorf("%d bytes of %d: %+v", sum, len(b), ranges)
	}
	one, err := look(3, 1)
	if err != nil || len(one) != 1 || one[0].Bytes != guestport.PageBytes {
		t.Errorf("%+v, %v", one, err)
	}
	for _, c := range []struct{ at, n uint64 }{{at + 1, 4096}, {at, 100}, {at, 0}, {^uint64(0) &^ 4095, 8192}} {
		if _, err := physical(os.Getpid(), c.at, c.n); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	if _, err := physical(1<<30, at, 4096); err == nil {
		t.Error("a process that is not there")
	}
}
