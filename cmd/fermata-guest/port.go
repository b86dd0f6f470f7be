package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"fermata/protocol/guestport"
)

// port is the way to the host.
type port interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// busyRetry spaces attempts to open a port that another process has open: one at a
// time may.
const busyRetry = 50 * time.Millisecond

// openPort opens the port of this guest, and waits for its turn.
func openPort(ctx context.Context) (port, error) {
	path, err := portDevice()
	if err != nil {
		return nil, err
	}
	for {
		// Non-blocking, so that deadlines work.
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.EBUSY) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", path, err)
		case <-time.After(busyRetry):
		}
	}
}

// portDevice finds the port's device: by the link that udev makes, or by its name in
// sysfs.
func portDevice() (string, error) {
	if _, err := os.Stat(guestport.Device); err == nil {
		return guestport.Device, nil
	}
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(text)) == guestport.PortName {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
		}
	}
	return "", fmt.Errorf("this guest has no port %s: it gets one with guest_tool: true in the cluster's specification", guestport.PortName)
}

// client asks the host, and opens the port for each request: others want it, too.
type client struct {
	open    func(context.Context) (port, error)
	timeout time.Duration
}

// ask sends a request and returns the answer to it.
func (c *client) ask(ctx context.Context, req guestport.Request) (guestport.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	p, err := c.open(ctx)
	if err != nil {
		return guestport.Reply{}, err
	}
	defer p.Close()
	defer context.AfterFunc(ctx, func() { _ = p.SetDeadline(time.Unix(1, 0)) })()
	req.ID = rand.Text()
	reply, err := converse(p, req)
	if err != nil && ctx.Err() != nil {
		return reply, fmt.Errorf("the host does not answer: %w", context.Cause(ctx))
	}
	return reply, err
}

func converse(p io.ReadWriter, req guestport.Request) (guestport.Reply, error) {
	if err := guestport.Write(p, req); err != nil {
		return guestport.Reply{}, err
	}
	r := guestport.NewReader(p)
	for {
		var reply guestport.Reply
		err := guestport.Read(r, &reply)
		switch {
		case errors.Is(err, guestport.ErrNoJSON) || err == nil && reply.ID != req.ID:
			continue // for somebody who has gone
		case err != nil:
			return reply, err
		case reply.Error != "":
			return reply, errors.New(reply.Error)
		}
		return reply, nil
	}
}
