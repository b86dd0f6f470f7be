package app

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"fermata/protocol/fault"
)

// Confirm asks whether to do what cannot be undone, and returns nil if the answer is
// yes. Where nobody can be asked it returns nil: a script means what it says.
func (e *Env) Confirm(ctx context.Context, what string) error {
	if !e.Asks {
		return nil
	}
	fmt.Fprintf(e.Stderr, "%s: %s. Go on? [y/N] ", Name, what)
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(e.Stdin).ReadString('\n')
		if err != nil {
			fmt.Fprintln(e.Stderr) // behind the question
		}
		answer <- line
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return fault.WithHint(fault.New(fault.Aborted, "not confirmed, and nothing was changed"), "answer y, or give --yes")
	}
}
