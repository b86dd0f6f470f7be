package labrun

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"fermata/experiments/guests"
)

// Consoles reads what a cluster's guests print, through the operator's command
// line. The guests are those of package guests, g1 to gCount. Make a new one
// after a restart: consoles begin anew.
//
// Concurrency: one goroutine at a time.
type Consoles struct {
	Lab     *Lab
	Cluster string
	Count   int

	have map[string][]byte // read so far, by guest
}

// Read returns all consoles from their beginning, by guest. It asks for what is
// new only, since the guests need the processors. The caller must not change them.
func (c *Consoles) Read(ctx context.Context) (map[string][]byte, error) {
	if c.have == nil {
		c.have = map[string][]byte{}
	}
	for i := 1; i <= c.Count; i++ {
		name := guests.Name(i)
		cmd := exec.CommandContext(ctx, c.Lab.Fermata, "--lab", c.Lab.Dir, "cluster", "console", c.Cluster, name,
			"--offset", strconv.Itoa(len(c.have[name])))
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		b, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("read console of %s: %w: %s", name, err, lastLine(complaints.String()))
		}
		c.have[name] = append(c.have[name], b...)
	}
	return c.have, nil
}

// Each calls f for every line a guest's console holds.
func Each(console []byte, f func(guests.Line)) {
	for text := range strings.Lines(string(console)) {
		if line, ok := guests.Parse(text); ok {
			f(line)
		}
	}
}

// LastCanary is the newest account of the canary on a console; zero: there is none.
func LastCanary(console []byte) (last guests.CanaryStatus) {
	Each(console, func(l guests.Line) {
		if s, ok := l.Body.(guests.CanaryStatus); ok {
			last = s
		}
	})
	return last
}

// consoleEvery spaces looks at all consoles: each takes a process a guest.
const consoleEvery = time.Second

// Await reads all consoles until is says yes.
func (c *Consoles) Await(ctx context.Context, budget time.Duration, what string, is func(map[string][]byte) (bool, error)) error {
	return pollEach(ctx, consoleEvery, budget, what, func() (bool, error) {
		all, err := c.Read(ctx)
		if err != nil {
			return false, err
		}
		return is(all)
	})
}

// Summarise is guests.Summarise of what Read returned.
func Summarise(all map[string][]byte) (guests.Summary, error) {
	readers := map[string]io.Reader{}
	for name, b := range all {
		readers[name] = bytes.NewReader(b)
	}
	return guests.Summarise(readers)
}
