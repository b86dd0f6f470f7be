package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/progress"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/render"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// operator is what the verbs that speak to the coordinator share: the flags
// and what follows from them.
type operator struct {
	env      *app.Env
	remote   remote.Options
	format   render.Format
	progress progress.Mode
}

// reads adds the flags of a command that prints a document.
func (o *operator) reads(c *cobra.Command) *cobra.Command {
	formatFlag(c, &o.format)
	return c
}

// follows adds the flags of a command that takes long and prints a document.
func (o *operator) follows(c *cobra.Command) *cobra.Command {
	c.Flags().Var(&o.progress, "progress", "how to show progress: bars on a terminal, else a line with numbers every few seconds (auto), a line a step besides (plain), or none")
	mustComplete(c, "progress", progress.ModeNames())
	return o.reads(c)
}

// confirms has c ask before it does what cannot be undone. question says what that is;
// empty: this call is harmless.
func (o *operator) confirms(c *cobra.Command, question func(args []string) string) *cobra.Command {
	var yes bool
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask; nothing is asked where standard input or standard error is no terminal")
	do := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if what := question(args); what != "" && !yes {
			if err := o.env.Confirm(c.Context(), what); err != nil {
				return app.Cause(c.Context(), err)
			}
		}
		return do(c, args)
	}
	return c
}

// formatFlag adds -o.
func formatFlag(c *cobra.Command, f *render.Format) {
	c.Flags().VarP(f, "output", "o", "form of the output")
	mustComplete(c, "output", render.FormatNames())
}

func mustComplete(c *cobra.Command, flag string, words []string) {
	err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag is not defined, or completed twice
	}
}

// call opens a connection, makes calls on it, and closes it. Its errors say
// what was to be done: do is that in words.
func (o *operator) call(ctx context.Context, do string, calls func(*remote.Conn) error) error {
	target, err := o.remote.Resolve(o.env.Getenv)
	if err != nil {
		return fmt.Errorf("%s: %w", do, err)
	}
	conn, err := remote.Dial(ctx, target)
	if err != nil {
		return fmt.Errorf("%s: %w", do, app.Cause(ctx, err))
	}
	err = app.Cause(ctx, target.Explain(calls(conn)))
	// The coordinator may say what was to be done in the very same words.
	if err != nil && !strings.HasPrefix(err.Error(), do+":") {
		err = fmt.Errorf("%s: %w", do, err)
	}
	return errors.Join(err, conn.Close())
}

// print writes the document of a command.
func (o *operator) print(doc render.Document) error {
	return render.Write(o.env.Stdout, o.format, doc)
}

// follow shows the events of a long call and returns the last one, which holds
// the result.
func (o *operator) follow(ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[api.Event], error)) (*api.Event, error) {
	// The stream must not outlive a return before its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err != nil {
		return nil, err
	}
	display, err := progress.New(ctx, o.progress, o.env.Stderr, o.env.Terminal)
	if err != nil {
		return nil, err
	}
	defer display.Close()
	defer o.env.RedirectNotices(display)()
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, fault.New(fault.Unknown, "the coordinator told no result")
		case err != nil:
			return nil, err
		case event.GetResult() != nil:
			err := drain(stream)
			if err == nil {
				display.Done()
			}
			return event, err
		}
		display.Event(event)
	}
}

// drain reads the end of a stream behind its result: an error there means that
// the result did not stand.
func drain(stream grpc.ServerStreamingClient[api.Event]) error {
	switch _, err := stream.Recv(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	default:
		return fault.New(fault.Internal, "the coordinator went on after the result")
	}
}

// wrongResult is the error for a result of another kind than the call has.
func wrongResult(event *api.Event) error {
	kind := strings.TrimPrefix(fmt.Sprintf("%T", event.GetResult()), "*api.Event_")
	return fault.New(fault.Internal, "the coordinator answered with a result of kind %s", strings.ToLower(kind))
}
