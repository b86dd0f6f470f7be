// Package nbd asks a server of network block devices to flush one: the part of the
// protocol that says whether a disk answers.
//
// The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	magicServer  = 0x4e42444d41474943 // NBDMAGIC
	magicOption  = 0x49484156454f5054 // IHAVEOPT
	magicAnswer  = 0x0003e889045565a9
	magicRequest = 0x25609513
	magicReply   = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionGo      = 7
	answerAck     = 1
	answerInfo    = 3
	answerIsError = 1 << 31
	infoExport    = 0

	flagSendFlush = 1 << 2
	commandFlush  = 3

	maxAnswer = 64 << 10 // bytes; servers send a few dozen
)

// ErrProtocol: the server does not speak the protocol, or lacks what we need of it.
var ErrProtocol = errors.New("not a usable server of network block devices")

// Client is a connection to one export.
//
// Concurrency: one call at a time. After an error the connection is of no use any more.
type Client struct {
	conn   net.Conn
	handle uint64
}

// New greets the server at the other end of conn and chooses an export. It takes over
// the connection, and closes it on error.
func New(ctx context.Context, conn net.Conn, export string) (*Client, error) {
	c := &Client{conn: conn}
	if err := c.within(ctx, func() error { return c.greet(export) }); err != nil {
		return nil, errors.Join(fmt.Errorf("export %s: %w", export, err), conn.Close())
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Flush has the server write everything to the disk. An error that the disk reports
// wraps a unix.Errno, and the connection stays usable.
func (c *Client) Flush(ctx context.Context) error { return c.within(ctx, c.flush) }

// within runs f, and ends its reading and writing with ctx.
func (c *Client) within(ctx context.Context, f func() error) error {
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) greet(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.conn, hello[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint64(hello[:]) != magicServer || be.Uint64(hello[8:]) != magicOption {
		return fmt.Errorf("%w: it greets with %x", ErrProtocol, hello)
	}
	if be.Uint16(hello[16:])&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: it is of the old style", ErrProtocol)
	}
	out := be.AppendUint32(nil, flagFixedNewstyle|uint32(be.Uint16(hello[16:]))&flagNoZeroes)
	out = be.AppendUint64(out, magicOption)
	out = be.AppendUint32(out, optionGo)
	out = be.AppendUint32(out, uint32(4+len(export)+2))
	out = be.AppendUint32(out, uint32(len(export)))
	out = append(out, export...)
	out = be.AppendUint16(out, 0) // nothing more to know
	if _, err := c.conn.Write(out); err != nil {
		return err
	}
	return c.chosen()
}

// chosen reads the answers to the choice of an export.
func (c *Client) chosen() error {
	be := binary.BigEndian
	flushes := false
	for {
		var head [20]byte
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		kind, size := be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head[:]) != magicAnswer || size > maxAnswer {
			return fmt.Errorf("%w: it answers with %x", ErrProtocol, head)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(c.conn, data); err != nil {
			return err
		}
		switch {
		case kind == answerAck && flushes:
			return nil
		case kind == answerAck:
			return fmt.Errorf("%w: it cannot flush", ErrProtocol)
		case kind&answerIsError != 0:
			return fmt.Errorf("%w: it refuses (%#x): %s", ErrProtocol, kind, data)
		case kind == answerInfo && size == 12 && be.Uint16(data) == infoExport:
			flushes = be.Uint16(data[10:])&flagSendFlush != 0
		}
	}
}

func (c *Client) flush() error {
	be := binary.BigEndian
	c.handle++
	out := be.AppendUint32(nil, magicRequest)
	out = be.AppendUint16(out, 0)
	out = be.AppendUint16(out, commandFlush)
	out = be.AppendUint64(out, c.handle)
	out = be.AppendUint64(out, 0) // offset and length are not used
	out = be.AppendUint32(out, 0)
	if _, err := c.conn.Write(out); err != nil {
		return err
	}
	var reply [16]byte
	if _, err := io.ReadFull(c.conn, reply[:]); err != nil {
		return err
	}
	if be.Uint32(reply[:]) != magicReply || be.Uint64(reply[8:]) != c.handle {
		return fmt.Errorf("%w: it replies with %x", ErrProtocol, reply)
	}
	if errno := be.Uint32(reply[4:]); errno != 0 { // the numbers are Linux's
		return unix.Errno(errno)
	}
	return nil
}
