package nodeconn

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"fermata/protocol/fault"
)

// maxAttempts bounds how often one call is sent. With the pauses below an agent
// that restarts within five seconds is met again; one that refuses every
// connection is reported after about as long.
const maxAttempts = 6

// Pauses between attempts: short at first, as most lost answers are a broken
// connection that is replaced at once.
const (
	firstPause = 50 * time.Millisecond
	longPause  = 2 * time.Second
)

// errSilent is the cause of a call that its node did not answer in time.
var errSilent = errors.New("no answer in time")

// Ask makes one call and waits for its answer, at most timeout in all. An
// answer that was lost, or a node that could not be reached, is asked again.
//
// On error: the class Unknown says that the node may have done it.
func Ask[T any](ctx context.Context, timeout time.Duration, call func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := within(ctx, timeout)
	defer cancel()
	return again(ctx, timeout, func() (T, error) { return call(ctx) })
}

// Once makes one attempt of a call, for a caller that decides by itself whether
// to ask again.
func Once[T any](ctx context.Context, timeout time.Duration, call func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := within(ctx, timeout)
	defer cancel()
	answer, err := call(ctx)
	return answer, silentOr(ctx, timeout, err)
}

// within is a context that is cancelled after timeout. It has no deadline: gRPC
// would tell the node, and the node's clock could end the call with an error
// that reads like an answer. See TestAsk_HangingNodeIsUnknown.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(timeout, func() { cancel(errSilent) })
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// Follow opens a stream and hands every message to each until the stream ends
// well. silence is the longest wait for the next message. A stream that breaks
// is opened again, and each sees its messages from the beginning.
func Follow[M any](ctx context.Context, silence time.Duration, open func(ctx context.Context) (grpc.ServerStreamingClient[M], error), each func(*M)) error {
	_, err := again(ctx, silence, func() (struct{}, error) {
		return struct{}{}, followOnce(ctx, silence, open, each)
	})
	return err
}

func followOnce[M any](ctx context.Context, silence time.Duration, open func(ctx context.Context) (grpc.ServerStreamingClient[M], error), each func(*M)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alarm := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer alarm.Stop()
	stream, err := open(ctx)
	if err != nil {
		return silentOr(ctx, silence, err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return silentOr(ctx, silence, err)
		}
		alarm.Reset(silence)
		each(m)
	}
}

// again repeats attempt while its outcome is unknown or the node was not there.
func again[T any](ctx context.Context, patience time.Duration, attempt func() (T, error)) (T, error) {
	pause := firstPause
	for n := 1; ; n++ {
		answer, err := attempt()
		if err == nil {
			return answer, nil
		}
		err = silentOr(ctx, patience, err)
		if n == maxAttempts || ctx.Err() != nil || errors.Is(err, errSilent) || !mayAskAgain(err) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, silentOr(ctx, patience, err)
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

// mayAskAgain tells whether err leaves open what the node did.
func mayAskAgain(err error) bool {
	switch fault.ClassOf(err) {
	case fault.Unknown, fault.Unavailable:
		return true
	default:
		return false
	}
}

// silentOr says in plain words what ended the wait when it was this side: the
// node's silence, or the caller's own cause.
func silentOr(ctx context.Context, patience time.Duration, err error) error {
	if err == nil || errors.Is(err, errSilent) {
		return err
	}
	cause := context.Cause(ctx)
	switch {
	case ctx.Err() == nil:
		return err
	case errors.Is(cause, errSilent):
		if mayAskAgain(err) && !errors.Is(err, context.Canceled) {
			return fault.New(fault.ClassOf(err), "%w within %s: %w", errSilent, patience, err)
		}
		return fault.New(fault.Unknown, "%w (%s)", errSilent, patience)
	case mayAskAgain(err):
		return fault.Wrap(fault.Unknown, cause, "no answer yet")
	}
	return err
}
