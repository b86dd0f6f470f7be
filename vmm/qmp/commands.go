package qmp

import (
	"context"
	"os"
)

// RunState is the answer to query-status.
type RunState struct {
	Running bool   `json:"running"`
	Status  string `json:"status"` // QEMU's own word: running, paused, inmigrate, ...
}

// QueryStatus asks for the run state.
func (c *Client) QueryStatus(ctx context.Context) (RunState, error) {
	var s RunState
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Stop halts the vCPUs and drains block I/O.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets the vCPUs run. On a monitor that still waits for a migration it
// only arranges that the guest runs once that has come.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// GetFD gives the monitor a descriptor under a name, for a URI fd:NAME. It
// replaces one of the same name. The file stays the caller's.
func (c *Client) GetFD(ctx context.Context, name string, file *os.File) error {
	return c.ExecuteWithFile(ctx, "getfd", map[string]string{"fdname": name}, nil, file)
}

// CloseFD takes a descriptor of GetFD back from a monitor that did not use it.
func (c *Client) CloseFD(ctx context.Context, name string) error {
	return c.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil)
}

// FDSet is a set of one descriptor, made by AddFD.
type FDSet struct {
	ID int `json:"fdset-id"` // the monitor opens it as the path /dev/fdset/ID
	FD int `json:"fd"`       // the descriptor's number in the monitor's process
}

// AddFD puts a descriptor into a new set. The file stays the caller's.
func (c *Client) AddFD(ctx context.Context, file *os.File) (set FDSet, err error) {
	err = c.ExecuteWithFile(ctx, "add-fd", nil, &set, file)
	return set, err
}

// RemoveFD removes a set of AddFD. What the monitor has opened through it
// stays open.
func (c *Client) RemoveFD(ctx context.Context, set FDSet) error {
	return c.Execute(ctx, "remove-fd", map[string]int{"fdset-id": set.ID}, nil)
}
