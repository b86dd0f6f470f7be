package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// budget bounds every wait of these tests.
const budget = 10 * time.Second

const greetingLine = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob", {"later": 1}]}}`

// monitor is the other end of a client under test.
type monitor struct {
	t    *testing.T
	conn *net.UnixConn
	in   *bufio.Reader
}

// connect returns a greeted client and its monitor.
func connect(t *testing.T) (*Client, *monitor) {
	t.Helper()
	ours, m := pair(t)
	greeted := make(chan error, 1)
	go func() { greeted <- m.greet() }()
	c, err := New(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-greeted; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, m
}

func pair(t *testing.T) (*net.UnixConn, *monitor) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = c.(*net.UnixConn)
	}
	conns[1].SetDeadline(time.Now().Add(budget))
	t.Cleanup(func() { conns[0].Close(); conns[1].Close() })
	return conns[0], &monitor{t: t, conn: conns[1], in: bufio.NewReader(conns[1])}
}

func (m *monitor) greet() error {
	m.say(greetingLine)
	c, err := m.read()
	if err != nil {
		return err
	}
	if c.Execute != "qmp_capabilities" {
		return fmt.Errorf("first command is %s", c.Execute)
	}
	m.say(`{"return": {}, "id": %d}`, c.ID)
	return nil
}

func (m *monitor) say(format string, args ...any) {
	fmt.Fprintf(m.conn, format+"\r\n", args...)
}

func (m *monitor) read() (command, error) {
	line, err := m.in.ReadBytes('\n')
	if err != nil {
		return command{}, err
	}
	var c command
	return c, json.Unmarshal(line, &c)
}

func (m *monitor) next() command {
	m.t.Helper()
	c, err := m.read()
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(budget):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestClient_Greeting(t *testing.T) {
	c, _ := connect(t)
	g := c.Greeting()
	if g.Version.String() != "7.2.22" || g.Version.Package != "Debian" {
		t.Errorf("version %+v", g.Version)
	}
	if len(g.Capabilities) != 1 || g.Capabilities[0] != "oob" {
		t.Errorf("capabilities %v, want only what is a word", g.Capabilities)
	}
}

// TestClient_MatchesByID answers two commands the other way round.
func TestClient_MatchesByID(t *testing.T) {
	c, m := connect(t)
	results := make(chan error, 2)
	ask := func(name string) {
		var got string
		err := c.Execute(t.Context(), name, nil, &got)
		if err == nil && got != name {
			err = fmt.Errorf("%s was answered with %q", name, got)
		}
		results <- err
	}
	go ask("first")
	a := m.next()
	go ask("second")
	b := m.next()
	m.say(`{"return": %q, "id": %d}`, b.Execute, b.ID)
	m.say(`{"return": %q, "id": %d}`, a.Execute, a.ID)
	for range 2 {
		if err := wait(t, results); err != nil {
			t.Error(err)
		}
	}
}

// TestClient_Batch answers nothing before all of a batch has been read.
func TestClient_Batch(t *testing.T) {
	c, m := connect(t)
	told := make(chan error, 1)
	go func() {
		var got [3]command
		for i := range got {
			var err error
			if got[i], err = m.read(); err != nil {
				told <- err
				return
			}
		}
		m.say(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`, got[0].ID)
		m.say(`{"return": {"running": true, "status": "running"}, "id": %d}`, got[2].ID)
		m.say(`{"return": {}, "id": %d}`, got[1].ID)
		told <- nil
	}()
	var s RunState
	first, second, third := &Call{Name: "stop"}, &Call{Name: "cont"}, &Call{Name: "query-status", Result: &s}
	err := c.Batch(t.Context(), first, second, third)
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	var refusal *Error
	if !errors.As(err, &refusal) || first.Err == nil || second.Err != nil || third.Err != nil || !s.Running {
		t.Errorf("batch: %v; %v, %v, %v; %+v", err, first.Err, second.Err, third.Err, s)
	}
}

func TestClient_Refusal(t *testing.T) {
	c, m := connect(t)
	go func() {
		cmd, _ := m.read()
		m.say(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "no such thing"}}`, cmd.ID)
	}()
	err := c.Execute(t.Context(), "nonsense", nil, nil)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Class != ClassCommandNotFound || refusal.Command != "nonsense" {
		t.Fatalf("error %v, want a refusal of nonsense", err)
	}
	if errors.Is(err, ErrUnanswered) {
		t.Error("a refusal is an answer")
	}
}

// TestClient_GivesUp: a caller that gives up hears so, and its late answer
// harms nobody.
func TestClient_GivesUp(t *testing.T) {
	c, m := connect(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error, 1)
	go func() { result <- c.Execute(ctx, "slow", nil, nil) }()
	slow := m.next()
	why := errors.New("pause budget is spent")
	cancel(why)
	if err := wait(t, result); !errors.Is(err, ErrUnanswered) || !errors.Is(err, why) {
		t.Fatalf("error %v, want ErrUnanswered with its cause", err)
	}
	go func() { result <- c.Execute(t.Context(), "next", nil, nil) }()
	next := m.next()
	m.say(`{"return": {}, "id": %d}`, slow.ID)
	m.say(`{"return": {}, "id": %d}`, next.ID)
	if err := wait(t, result); err != nil {
		t.Fatal(err)
	}
}

// TestClient_GivesUpWriting: a monitor that does not read cannot hold a
// caller, and half a line ends the connection.
func TestClient_GivesUpWriting(t *testing.T) {
	c, m := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() {
		big := map[string]string{"x": strings.Repeat("x", 16<<20)} // more than the socket takes
		result <- c.Execute(ctx, "big", big, nil)
	}()
	if _, err := m.in.ReadByte(); err != nil { // the line is on its way
		t.Fatal(err)
	}
	cancel()
	if err := wait(t, result); !errors.Is(err, ErrUnanswered) || !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want ErrUnanswered and why", err)
	}
	wait(t, c.Done())
	if err := c.Execute(t.Context(), "after", nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("error %v, want ErrClosed", err)
	}
}

func TestClient_CancelledBeforeSending(t *testing.T) {
	c, m := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := c.Execute(ctx, "never", nil, nil)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnanswered) {
		t.Fatalf("error %v, want context.Canceled of a command that was not sent", err)
	}
	result := make(chan error, 1)
	go func() { result <- c.Execute(t.Context(), "next", nil, nil) }()
	cmd := m.next()
	if cmd.Execute != "next" {
		t.Errorf("the monitor got %s", cmd.Execute)
	}
	m.say(`{"return": {}, "id": %d}`, cmd.ID)
	if err := wait(t, result); err != nil {
		t.Fatal(err)
	}
}

func TestClient_Events(t *testing.T) {
	c, m := connect(t)
	m.say(`{"timestamp": {"seconds": 7, "microseconds": 500000}, "event": "STOP"}`)
	m.say(`{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "RESET", "data": {"guest": true}}`)
	stop, reset := wait(t, c.Events()), wait(t, c.Events())
	if stop.Name != "STOP" || stop.Data != nil || !stop.At.Equal(time.Unix(7, 5e8)) {
		t.Errorf("event %+v", stop)
	}
	if reset.Name != "RESET" || string(reset.Data) != `{"guest": true}` || !reset.At.IsZero() {
		t.Errorf("event %+v", reset)
	}
}

// TestClient_SlowSubscriber: events that nobody takes are counted, and replies
// pass them.
func TestClient_SlowSubscriber(t *testing.T) {
	c, m := connect(t)
	const extra = 3
	for range eventQueue + extra {
		m.say(`{"event": "STOP"}`)
	}
	result := make(chan error, 1)
	go func() { result <- c.Execute(t.Context(), "query", nil, nil) }()
	m.say(`{"return": {}, "id": %d}`, m.next().ID)
	if err := wait(t, result); err != nil {
		t.Fatal(err)
	}
	if n := c.Missed(); n != extra {
		t.Errorf("missed %d events, want %d", n, extra)
	}
}

// TestClient_BrokenMonitor: whatever ends the connection reaches those who
// wait and those who come later.
func TestClient_BrokenMonitor(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*monitor)
		want error
	}{
		{"dies", func(m *monitor) { m.conn.Close() }, ErrClosed},
		{"talks nonsense", func(m *monitor) { m.say("hello") }, ErrProtocol},
		{"greets again", func(m *monitor) { m.say(greetingLine) }, ErrProtocol},
		{"answers nobody", func(m *monitor) { m.say(`{"return": {}, "id": 99}`) }, ErrProtocol},
		{"answers without id", func(m *monitor) { m.say(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}`) }, ErrProtocol},
		{"never ends a line", func(m *monitor) { m.conn.Write([]byte(strings.Repeat("x", 2*maxLine))) }, ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, m := connect(t)
			result := make(chan error, 1)
			go func() { result <- client.Execute(t.Context(), "waiting", nil, nil) }()
			m.next()
			c.end(m)
			if err := wait(t, result); !errors.Is(err, ErrUnanswered) || !errors.Is(err, c.want) {
				t.Errorf("waiting command: %v, want ErrUnanswered and %v", err, c.want)
			}
			wait(t, client.Done())
			if err := client.Execute(t.Context(), "later", nil, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("later command: %v, want ErrClosed", err)
			}
			for range client.Events() { // closed
			}
		})
	}
}

func TestClient_Close(t *testing.T) {
	c, m := connect(t)
	result := make(chan error, 1)
	go func() { result <- c.Execute(t.Context(), "waiting", nil, nil) }()
	m.next()
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := wait(t, result); !errors.Is(err, ErrUnanswered) {
		t.Errorf("waiting command: %v, want ErrUnanswered", err)
	}
}

func TestNew_NoGreeting(t *testing.T) {
	t.Run("silence", func(t *testing.T) {
		conn, _ := pair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := New(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
	})
	t.Run("another protocol", func(t *testing.T) {
		conn, m := pair(t)
		m.say(`{"event": "STOP"}`)
		if _, err := New(t.Context(), conn); !errors.Is(err, ErrProtocol) {
			t.Errorf("error %v, want ErrProtocol", err)
		}
	})
}

// TestClient_GetFD sends one end of a pipe and uses what arrives.
func TestClient_GetFD(t *testing.T) {
	c, m := connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	result := make(chan error, 1)
	go func() { result <- c.GetFD(t.Context(), "pipe", w) }()

	line, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oob, _, _, err := m.conn.ReadMsgUnix(line, rights)
	if err != nil {
		t.Fatal(err)
	}
	var cmd command
	if err := json.Unmarshal(line[:n], &cmd); err != nil || cmd.Execute != "getfd" {
		t.Fatalf("command %s: %v", line[:n], err)
	}
	control, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(control) != 1 {
		t.Fatalf("%d control messages: %v", len(control), err)
	}
	fds, err := unix.ParseUnixRights(&control[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v: %v", fds, err)
	}
	m.say(`{"return": {}, "id": %d}`, cmd.ID)
	if err := wait(t, result); err != nil {
		t.Fatal(err)
	}
	arrived := os.NewFile(uintptr(fds[0]), "arrived")
	if _, err := arrived.WriteString("through"); err != nil {
		t.Fatal(err)
	}
	arrived.Close()
	got := make([]byte, 7)
	if _, err := r.Read(got); err != nil || string(got) != "through" {
		t.Errorf("read %q: %v", got, err)
	}
}

// TestDial_LongPath: a socket may lie deeper than a socket address can say.
func TestDial_LongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "qmp.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v: want it private", st, err)
	}
	greeted := make(chan error, 1)
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			greeted <- err
			return
		}
		m := &monitor{t: t, conn: conn, in: bufio.NewReader(conn)}
		greeted <- m.greet()
		conn.Close()
	}()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := wait(t, greeted); err != nil {
		t.Fatal(err)
	}
}

func TestDial_NobodyListens(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want it to say that there is no socket", err)
	}
}
