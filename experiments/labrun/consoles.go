package labrun

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"fermata/experiments/guests"
)

// Consoles reads what a cluster's guests print, through the operator's command
// line. The guests are those of package guests, g1 to gCount.
type Consoles struct {
	Lab     *Lab
	Cluster string
	Count   int
}

// Read returns all consoles, by guest.
func (c *Consoles) Read(ctx context.Context) (map[string][]byte, error) {
	out := map[string][]byte{}
	for i := 1; i <= c.Count; i++ {
		name := guests.Name(i)
		cmd := exec.CommandContext(ctx, c.Lab.Fermata, "--lab", c.Lab.Dir, "cluster", "console", c.Cluster, name)
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		b, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("read console of %s: %w: %s", name, err, lastLine(complaints.String()))
		}
		out[name] = b
	}
	return out, nil
}

// Each calls f for every line a guest's console holds.
func Each(console []byte, f func(guests.Line)) {
	for text := range strings.Lines(string(console)) {
		if line, ok := guests.Parse(text); ok {
			f(line)
		}
	}
}

// Await reads all consoles until is says yes.
func (c *Consoles) Await(ctx context.Context, budget time.Duration, what string, is func(map[string][]byte) (bool, error)) error {
	return Poll(ctx, budget, what, func() (bool, error) {
		all, err := c.Read(ctx)
		if err != nil {
			return false, err
		}
		return is(all)
	})
}
