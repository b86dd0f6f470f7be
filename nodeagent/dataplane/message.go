package dataplane

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

// A message on the data plane's socket. Both integers are little-endian.
//
//	0        4        8             8+n            8+n+m
//	+--------+--------+-------------+--------------+
//	| n u32  | m u32  | JSON, n B   | frames, m B  |
//	+--------+--------+-------------+--------------+
//
// A connection carries one request at a time and its reply. Descriptors come as
// SCM_RIGHTS with the first byte of a request. The first request is hello.
const (
	messageHeader = 8
	// maxJSON bounds everything but frames: a thousand peers with a dozen cards each
	// take less.
	maxJSON = 4 << 20
	// maxFrames bounds the frames of one message. The channel state of a NIC has at
	// most 2 × fabric.DefaultHoldBytes.
	maxFrames = 1 << 30
	// maxFiles is the two ends of a NIC's socket pair.
	maxFiles = 2
)

// protocolVersion changes with every change of a request that an older process would
// misunderstand. An agent that meets another version replaces the process.
const protocolVersion = 1

// op names a request.
type op string

// The requests. hello begins every connection: without a session it begins one, and
// the connection lives as long as the agent; with a session it is for calls. end is
// understood by all versions. The others are methods of Plane.
const (
	opHello        op = "hello"
	opEnd          op = "end"
	opLives        op = "lives"
	opContinue     op = "continue-cluster"
	opRemove       op = "remove-cluster"
	opPeers        op = "set-peers"
	opStats        op = "cluster-stats"
	opJoin         op = "join"
	opLeave        op = "leave"
	opBelongs      op = "belongs"
	opInject       op = "inject"
	opUplink       op = "attach-uplink"
	opDurable      op = "durable"
	opBeginCut     op = "begin-cut"
	opGate         op = "gate"
	opDrain        op = "drain"
	opPassCut      op = "pass-cut"
	opUngate       op = "ungate"
	opSendMarkers  op = "send-markers"
	opWaitMarkers  op = "wait-markers"
	opChannelState op = "channel-state"
	opEndCut       op = "end-cut"
	opTrace        op = "trace"
)

// request is what an agent asks. Each op uses the fields that its method has.
type request struct {
	Op op `json:"op"`

	Version  int      `json:"version,omitempty"` // of hello
	Session  string   `json:"session,omitempty"` // of hello
	Settings Settings `json:"settings,omitzero"` // of a hello that begins a session

	Cluster string           `json:"cluster,omitempty"`
	Network string           `json:"network,omitempty"`
	Guest   string           `json:"guest,omitempty"`
	NIC     string           `json:"nic,omitempty"`
	MAC     net.HardwareAddr `json:"mac,omitempty"`
	Gated   bool             `json:"gated,omitempty"`
	Outside fabric.Outside   `json:"outside,omitempty"`
	PID     int              `json:"pid,omitempty"`
	Floor   uint64           `json:"floor,omitempty"`
	Epoch   uint64           `json:"epoch,omitempty"`
	Peers   []fabric.Peer    `json:"peers,omitempty"`
	Members []string         `json:"members,omitempty"`
	For     time.Duration    `json:"for,omitempty"` // patience, limit or budget

	Files int `json:"files,omitempty"` // descriptors that come with the request
}

// reply answers a request.
type reply struct {
	Error *wireError `json:"error,omitempty"`
	More  bool       `json:"more,omitempty"` // of trace: another reply follows

	Version     int    `json:"version,omitempty"`
	Session     string `json:"session,omitempty"`
	Incarnation string `json:"incarnation,omitempty"`
	PID         int    `json:"pid,omitempty"` // of the process; of hello and end

	Lives  map[string]uint64    `json:"lives,omitempty"`
	Stats  *fabric.ClusterStats `json:"stats,omitempty"`
	Count  int                  `json:"count,omitempty"`
	Early  time.Duration        `json:"early,omitempty"` // of gate
	Cards  []recordedCard       `json:"cards,omitempty"`
	Events []event              `json:"events,omitempty"`
	Lost   uint64               `json:"lost,omitempty"`
}

// recordedCard says whose frames come with the reply, in order.
type recordedCard struct {
	fabric.PortKey
	Bytes int `json:"bytes"` // as fabric.EncodeFrames writes them
}

// event is a fabric.Traced. Its data is the next Bytes of the frames.
type event struct {
	fabric.Traced
	Bytes int `json:"bytes,omitempty"`
}

// codes are the errors of a fabric that its user tells apart, by their names on the
// wire.
var codes = []struct {
	name string
	err  error
}{
	{"undrained", fabric.ErrUndrained}, {"not-gated", fabric.ErrNotGated}, {"not-drained", fabric.ErrNotDrained},
	{"stale", fabric.ErrStale}, {"orphan", fabric.ErrOrphan}, {"not-cut", fabric.ErrNotCut},
	{"channel-full", fabric.ErrChannelFull}, {"channels-open", fabric.ErrChannelsOpen},
	{"unknown-cluster", fabric.ErrUnknownCluster}, {"unknown-network", fabric.ErrUnknownNetwork}, {"unknown-nic", fabric.ErrUnknownNIC},
	{"exists", fabric.ErrExists}, {"closed", fabric.ErrClosed}, {"malformed", fabric.ErrMalformed},
	{"other-settings", errOtherSettings}, {"other-version", errOtherVersion},
}

// wireError is an error with what it is, for errors.Is at the other end.
type wireError struct {
	Text  string   `json:"text"`
	Codes []string `json:"codes,omitempty"`
}

func wireErrorOf(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Text: err.Error()}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			w.Codes = append(w.Codes, c.name)
		}
	}
	return w
}

func (e *wireError) Error() string { return e.Text }

func (e *wireError) Is(target error) bool {
	for _, c := range codes {
		if c.err != target {
			continue
		}
		for _, name := range e.Codes {
			if name == c.name {
				return true
			}
		}
	}
	return false
}

// conn is one connection.
//
// Concurrency: one reader, one writer.
type conn struct {
	unix  *net.UnixConn
	in    *bufio.Reader
	files []*os.File // came with what was read, and not taken yet; owned by the reader
}

func newConn(u *net.UnixConn) *conn {
	c := &conn{unix: u}
	c.in = bufio.NewReaderSize(c, 64<<10)
	return c
}

// Read implements io.Reader for in: it keeps the descriptors that come along.
func (c *conn) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(p, oob)
	if oobn > 0 {
		files, ferr := parseFiles(oob[:oobn])
		c.files = append(c.files, files...)
		err = errors.Join(err, ferr)
	}
	switch {
	case err != nil:
		return max(n, 0), err
	case flags&unix.MSG_CTRUNC != 0 || len(c.files) > maxFiles:
		return n, errors.New("too many descriptors")
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from agent"))
		}
	}
	return files, nil
}

// read reads one message into v. The caller owns frames.
func (c *conn) read(v any) (frames []byte, err error) {
	var h [messageHeader]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return nil, err
	}
	n, m := binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint32(h[4:])
	if n > maxJSON || m > maxFrames {
		return nil, fmt.Errorf("message of %d and %d bytes, limits %d and %d", n, m, maxJSON, maxFrames)
	}
	text, err := readAll(c.in, n)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	if m == 0 {
		return nil, nil
	}
	return readAll(c.in, m)
}

// readAll reads n bytes. What it allocates grows with what has come.
func readAll(r io.Reader, n uint32) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// takeFiles hands over the descriptors that came with the last message.
func (c *conn) takeFiles() []*os.File {
	files := c.files
	c.files = nil
	return files
}

// write writes one message. It does not own files.
func (c *conn) write(v any, frames []byte, files ...*os.File) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(text) > maxJSON || len(frames) > maxFrames {
		return fmt.Errorf("message of %d and %d bytes, limits %d and %d", len(text), len(frames), maxJSON, maxFrames)
	}
	b := make([]byte, 0, messageHeader+len(text))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frames)))
	b = append(b, text...)
	if len(files) > 0 {
		n := 0
		err := withDescriptors(files, nil, func(fds []int) (err error) {
			n, _, err = c.unix.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("send descriptors: %w", err)
		}
		b = b[n:]
	}
	bufs := net.Buffers{b, frames}
	_, err = bufs.WriteTo(c.unix)
	return err
}

// withDescriptors calls f with the descriptors of files, which stay open meanwhile.
// File.Fd would change their mode for all who share them.
func withDescriptors(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = withDescriptors(files[1:], append(fds, int(fd)), f) })
	return errors.Join(err, ferr)
}

// close ends the connection, with the descriptors that nobody has taken.
func (c *conn) close() {
	_ = c.unix.Close() // whoever reads finds out
}

// peer returns who is at the other end: who has connected, or who has made the listener.
func (c *conn) peer() (*unix.Ucred, error) {
	raw, err := c.unix.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, err)
}

// checkPeer refuses whoever is not of our own user.
func (c *conn) checkPeer() error {
	cred, err := c.peer()
	if err != nil {
		return fmt.Errorf("who is at the other end: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d is of user %d, not %d", cred.Pid, cred.Uid, os.Geteuid())
	}
	return nil
}
