package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"fermata/nodeagent/fabric"
)

const (
	// callBudget bounds a call without a deadline of its own. A process that takes
	// longer was stopped, or its host is busy beyond measure.
	callBudget = 10 * time.Second
	// statsBudget bounds the question for counters, which others wait for.
	statsBudget = 2 * time.Second
	// keptIdle is how many connections are kept for the next calls: about as many as
	// guests are cut at a time.
	keptIdle = 16
)

// Client is the agent's end of a data plane that is a process of its own.
//
// After the process has died every call fails with fabric.ErrClosed, until Connect has
// been called again.
//
// Concurrency: safe for use by several goroutines.
type Client struct {
	cfg Config // immutable

	mu      sync.Mutex
	present *agency // guarded by mu; nil: not connected
}

var _ Plane = (*Client)(nil)

// agency is the client's end of one session.
type agency struct {
	socket             string // immutable
	token, incarnation string // immutable
	primary            *conn  // immutable; the session lives as long as it does
	pid                int    // immutable; of the process
	lost               chan struct{}

	mu   sync.Mutex
	idle []*conn // guarded by mu
	over bool    // guarded by mu
}

// errGone is what calls end with once the process is gone.
func errGone() error { return fmt.Errorf("the node's data plane is gone: %w", fabric.ErrClosed) }

// hello begins a connection.
func hello(ctx context.Context, socket, token string, settings Settings) (*conn, reply, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, reply{}, err
	}
	con := newConn(c.(*net.UnixConn))
	answer, _, err := exchange(ctx, con, request{Op: opHello, Version: protocolVersion, Session: token, Settings: settings}, nil)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err == nil {
		err = con.checkPeer()
	}
	if err != nil {
		con.close()
		return nil, answer, err
	}
	return con, answer, nil
}

// exchange sends one request and reads the first reply. On error: the connection is of
// no use any more.
func exchange(ctx context.Context, c *conn, r request, frames []byte, files ...*os.File) (answer reply, more []byte, err error) {
	release := context.AfterFunc(ctx, c.close)
	r.Files = len(files)
	if err = c.write(r, frames, files...); err == nil {
		more, err = c.read(&answer)
	}
	if !release() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return answer, more, err
}

// begin takes the data plane over from whoever had it.
func begin(ctx context.Context, socket string, settings Settings) (*agency, error) {
	c, answer, err := hello(ctx, socket, "", settings)
	if err != nil {
		return nil, err
	}
	a := &agency{socket: socket, token: answer.Session, incarnation: answer.Incarnation, pid: answer.PID, primary: c, lost: make(chan struct{})}
	go func() {
		defer close(a.lost)
		_, _ = c.read(&reply{}) // it says nothing: this waits for its end
		a.drop()
	}()
	return a, nil
}

// take returns a connection for a call.
func (a *agency) take(ctx context.Context) (*conn, error) {
	a.mu.Lock()
	if a.over {
		a.mu.Unlock()
		return nil, errGone()
	}
	if n := len(a.idle); n > 0 {
		c := a.idle[n-1]
		a.idle = a.idle[:n-1]
		a.mu.Unlock()
		return c, nil
	}
	a.mu.Unlock()
	c, _, err := hello(ctx, a.socket, a.token, Settings{})
	if err != nil {
		return nil, fmt.Errorf("connect to the node's data plane: %w", err)
	}
	return c, nil
}

// put gives a connection back.
func (a *agency) put(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over || len(a.idle) >= keptIdle {
		c.close()
		return
	}
	a.idle = append(a.idle, c)
}

// drop closes all connections that wait for calls.
func (a *agency) drop() {
	a.primary.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	for _, c := range a.idle {
		c.close()
	}
	a.idle = nil
}

func (c *Client) agency() *agency {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.present
}

// call asks one thing. Without a deadline ctx ends after callBudget. The files stay the
// caller's.
func (c *Client) call(ctx context.Context, r request, frames []byte, files ...*os.File) (reply, []byte, error) {
	a := c.agency()
	if a == nil {
		return reply{}, nil, errGone()
	}
	if _, bounded := ctx.Deadline(); !bounded && r.Op != opWaitMarkers {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, callBudget, fmt.Errorf("the node's data plane does not answer %s within %s", r.Op, callBudget))
		defer cancel()
	}
	conn, err := a.take(ctx)
	if err != nil {
		return reply{}, nil, err
	}
	answer, more, err := exchange(ctx, conn, r, frames, files...)
	if err != nil {
		conn.close()
		if ctx.Err() == nil {
			err = errors.Join(errGone(), err) // it has broken the connection
		}
		return reply{}, nil, err
	}
	a.put(conn)
	if answer.Error != nil {
		return answer, more, answer.Error
	}
	return answer, more, nil
}

// do is call of a request that is answered by yes or an error.
func (c *Client) do(r request) error {
	_, _, err := c.call(context.Background(), r, nil)
	return err
}

// Incarnation implements Plane. Empty: the process is gone.
func (c *Client) Incarnation() string {
	if a := c.agency(); a != nil {
		return a.incarnation
	}
	return ""
}

// PID is the number of the process, 0 when it is gone.
func (c *Client) PID() int {
	if a := c.agency(); a != nil {
		return a.pid
	}
	return 0
}

// Lost is closed when the process, as Connect has found it, is gone.
func (c *Client) Lost() <-chan struct{} {
	if a := c.agency(); a != nil {
		return a.lost
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// Close lets go of the process, which lives on as long as guests do.
func (c *Client) Close() {
	c.mu.Lock()
	a := c.present
	c.present = nil
	c.mu.Unlock()
	if a != nil {
		a.drop()
		<-a.lost
	}
}
