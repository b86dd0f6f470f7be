package fabric

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The first bytes of a connection: the sender's hello, then the receiver's
// reply. Strings are a u16 length and that many bytes.
//
//	0        8         12       16         16+n
//	+--------+---------+--------+----------+
//	| magic  | version | n      | body     |
//	| 8 B    | u32     | u32    | n bytes  |
//	+--------+---------+--------+----------+
//
//	hello body:  life u64 | first u64 | fresh u64 | floor u64 | from | to | incarnation | cluster
//	reply body:  status u8 | last u64 | from | reason
const (
	helloMagic   = "FERMLNK1"
	replyMagic   = "FERMLRP1"
	helloVersion = 2
	helloHeader  = 16
	// maxHelloBody bounds what a stranger can make us allocate. Four names of
	// maxNameBytes and four integers are under 1.1 KiB.
	maxHelloBody = 4096
	// maxReasonBytes bounds the text of a refusal, so that a reply always fits.
	maxReasonBytes = 512
)

// hello opens a connection of a link.
//
// A link is one direction between two nodes for one life of one cluster. Its
// name is (from, incarnation, life): the receiver remembers the last sequence
// it has processed for that name, and the sender goes on after it.
//
// A receiver that does not remember the name, because its process was replaced,
// cannot know which records its predecessor has delivered. It then takes none of
// those that were ever sent: a frame may be lost, but none arrives twice.
type hello struct {
	life  uint64 // tells the links of one incarnation apart
	first uint64 // lowest sequence the sender can still send
	fresh uint64 // lowest sequence the sender has never sent, on any connection
	floor uint64 // epoch in which this life of the cluster began, at the sender
	from  string // node
	to    string // node
	// incarnation is the sending agent's.
	incarnation string
	cluster     string
}

// replyStatus says what a receiver makes of a hello. Zero is invalid.
type replyStatus uint8

const (
	// replyWelcome: send from last+1 on.
	replyWelcome replyStatus = 1
	// replyLater: the receiver does not have this life of the cluster yet, or is
	// still busy with the connection before. Try again.
	replyLater replyStatus = 2
	// replyStale: the sender belongs to an earlier life of the cluster.
	replyStale replyStatus = 3
	// replyRefused: not for this node, or from a node that is no peer.
	replyRefused replyStatus = 4
)

func (s replyStatus) String() string {
	switch s {
	case replyWelcome:
		return "welcome"
	case replyLater:
		return "later"
	case replyStale:
		return "stale"
	case replyRefused:
		return "refused"
	default:
		return fmt.Sprintf("status %d", uint8(s))
	}
}

type reply struct {
	status replyStatus
	last   uint64 // last sequence processed, with replyWelcome
	from   string // node that replies
	reason string // for people, with any other status
}

func (h hello) encode() []byte {
	b := make([]byte, 0, 256)
	b = binary.LittleEndian.AppendUint64(b, h.life)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	b = binary.LittleEndian.AppendUint64(b, h.fresh)
	b = binary.LittleEndian.AppendUint64(b, h.floor)
	for _, s := range []string{h.from, h.to, h.incarnation, h.cluster} {
		b = appendString(b, s)
	}
	return envelope(helloMagic, b)
}

func (r reply) encode() []byte {
	b := []byte{byte(r.status)}
	b = binary.LittleEndian.AppendUint64(b, r.last)
	b = appendString(b, r.from)
	b = appendString(b, r.reason[:min(len(r.reason), maxReasonBytes)])
	return envelope(replyMagic, b)
}

func readHello(r io.Reader) (hello, error) {
	body, err := readEnvelope(r, helloMagic)
	if err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	c := cursor{rest: body}
	h := hello{life: c.uint64(), first: c.uint64(), fresh: c.uint64(), floor: c.uint64()}
	for _, s := range []*string{&h.from, &h.to, &h.incarnation, &h.cluster} {
		*s = c.string(maxNameBytes)
	}
	if err := c.end(); err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	if h.first == 0 || h.from == "" || h.to == "" || h.incarnation == "" || h.cluster == "" {
		return hello{}, fmt.Errorf("read hello: empty field: %w", ErrMalformed)
	}
	if h.fresh < h.first {
		return hello{}, fmt.Errorf("read hello: record %d was never sent, yet %d is the first that is left: %w", h.fresh, h.first, ErrMalformed)
	}
	return h, nil
}

func readReply(r io.Reader) (reply, error) {
	body, err := readEnvelope(r, replyMagic)
	if err != nil {
		return reply{}, fmt.Errorf("read reply: %w", err)
	}
	c := cursor{rest: body}
	re := reply{
		status: replyStatus(c.uint8()),
		last:   c.uint64(),
		from:   c.string(maxNameBytes),
		reason: c.string(maxReasonBytes),
	}
	if err := c.end(); err != nil {
		return reply{}, fmt.Errorf("read reply: %w", err)
	}
	switch re.status {
	case replyWelcome, replyLater, replyStale, replyRefused:
		return re, nil
	default:
		return reply{}, fmt.Errorf("read reply: unknown %s: %w", re.status, ErrMalformed)
	}
}

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func envelope(magic string, body []byte) []byte {
	b := make([]byte, 0, helloHeader+len(body))
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, helloVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func readEnvelope(r io.Reader, magic string) ([]byte, error) {
	var h [helloHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	if string(h[:8]) != magic {
		return nil, fmt.Errorf("magic %q, want %q: %w", h[:8], magic, ErrMalformed)
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v != helloVersion {
		return nil, fmt.Errorf("version %d, know %d: %w", v, helloVersion, ErrMalformed)
	}
	n := binary.LittleEndian.Uint32(h[12:])
	if n > maxHelloBody {
		return nil, fmt.Errorf("body of %d bytes, limit %d: %w", n, maxHelloBody, ErrMalformed)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return body, nil
}

// cursor reads fields one after the other. The first that does not fit makes
// all later ones zero, and end report it.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.rest) {
		c.bad = true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) uint8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) string(limit int) string {
	n := int(c.uint16())
	if n > limit {
		c.bad = true
	}
	return string(c.take(n))
}

// end reports a field that did not fit, or bytes that are left.
func (c *cursor) end() error {
	if c.bad || len(c.rest) != 0 {
		return fmt.Errorf("fields do not fill the body: %w", ErrMalformed)
	}
	return nil
}
