package coordinatortest

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fermata/protocol/fault"
)

// Call names a call of the Node service.
type Call string

// The calls.
const (
	Describe   Call = "Describe"
	Check      Call = "CheckGuests"
	Create     Call = "CreateGuests"
	StepClocks Call = "StepClocks"
	Release    Call = "ReleaseGuests"
	Destroy    Call = "DestroyGuests"
	Prepare    Call = "PrepareRound"
	Cut        Call = "CutRound"
	Persist    Call = "PersistRound"
	Finish     Call = "FinishRound"
)

// Fault is what goes wrong with one call: it decides whether the work is done,
// and what is answered.
type Fault func(ctx context.Context, work func() error) error

// Refuse answers with an error of the class instead of doing the work.
func Refuse(class fault.Class, text string) Fault {
	return func(context.Context, func() error) error { return fault.New(class, "%s", text) }
}

// LoseAnswer does the work, and the caller sees a broken connection.
func LoseAnswer() Fault {
	return func(_ context.Context, work func() error) error {
		if err := work(); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "connection reset")
	}
}

// LoseRequest breaks the connection before anything is done.
func LoseRequest() Fault {
	return func(context.Context, func() error) error { return status.Error(codes.Unavailable, "connection reset") }
}

// Hang never answers and does nothing.
func Hang() Fault {
	return func(ctx context.Context, _ func() error) error {
		<-ctx.Done()
		return ctx.Err()
	}
}

// HangAfter does the work and never answers.
func HangAfter() Fault {
	return func(ctx context.Context, work func() error) error {
		if err := work(); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

// Park closes arrived, then waits until release is closed, or the call's end,
// and does the work.
func Park(arrived chan<- struct{}, release <-chan struct{}) Fault {
	return func(ctx context.Context, work func() error) error {
		close(arrived)
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return work()
	}
}

// Inject makes the next call of this kind meet f; several wait in line.
func (a *Agent) Inject(call Call, f Fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults[call] = append(a.faults[call], f)
}

// Heal takes back all faults that still wait.
func (a *Agent) Heal() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.faults)
}

// Calls counts the calls of a kind that have arrived.
func (a *Agent) Calls(call Call) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, c := range a.calls {
		if c == call {
			n++
		}
	}
	return n
}

// meet runs one call with the fault that waits for it, if any.
func (a *Agent) meet(ctx context.Context, call Call, work func() error) error {
	a.mu.Lock()
	a.calls = append(a.calls, call)
	var f Fault
	if waiting := a.faults[call]; len(waiting) > 0 {
		f, a.faults[call] = waiting[0], waiting[1:]
	}
	a.mu.Unlock()
	if f == nil {
		return work()
	}
	return f(ctx, work)
}
