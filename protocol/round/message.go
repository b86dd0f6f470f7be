package round

import (
	"errors"
	"fmt"
	"time"
)

// Why a Member refuses a request, or a Lead an input. ErrFenced and
// ErrStaleEpoch are of class stale, ErrBusy is of class busy, the others mean
// that one side is not the one it should be (class invalid).
var (
	ErrFenced        = errors.New("coordinator has been replaced")
	ErrStaleEpoch    = errors.New("epoch is over")
	ErrBusy          = errors.New("member is leaving an older round")
	ErrOutOfOrder    = errors.New("call does not fit the round's state")
	ErrContradiction = errors.New("outcome contradicts the one known")
	ErrNotMember     = errors.New("not a member of the round")
	ErrInvalid       = errors.New("invalid")
)

// Call is what the coordinator asks of a member.
type Call uint8

const (
	CallNone    Call = iota
	CallPrepare      // answered when the guests are ready to be cut
	CallCut          // answered when the guests run again
	CallPersist      // answered when the image is durable
	CallFinish       // answered when the outcome is known durably, and the guests run
)

// String returns the call's name.
func (c Call) String() string {
	return enumText("call", uint8(c), "None", "Prepare", "Cut", "Persist", "Finish")
}

// Options are the operator's wishes for a round. The Lead only hands them on.
type Options struct {
	// PauseBudget bounds how long a guest may be gated and stopped. A member
	// whose guests have not closed their channels by then lets them run.
	PauseBudget time.Duration
	// Cut is how the guests' cuts become one.
	Cut Cut
	// SkewBudget bounds how far apart the points of a coloured cut may be: for that
	// long, and the pause budget, a member waits from the beginning of its own cut
	// until those of the others have closed its channels. Negative is not allowed.
	SkewBudget time.Duration
	// DiscardChannels leaves channel state out of the image.
	DiscardChannels bool
	// Mode is how the guests' memory gets into the image.
	Mode Mode
	// Full ignores what is known of earlier checkpoints.
	Full bool
	// Audit checks that the tracking of writes has missed none.
	Audit bool
}

// Check refuses options that contradict each other.
func (o Options) Check() error {
	switch {
	case o.SkewBudget < 0:
		return errors.New("skew budget is negative")
	case o.Audit && o.Mode == ModeStop:
		return errors.New("audit is of live capture: mode stop tracks nothing")
	case o.Audit && o.Full:
		return errors.New("audit compares with the last checkpoint, which full leaves aside: give one of them")
	}
	return nil
}

// CutBudget bounds a member's cut, from its call until all channels are closed: what
// guests wait for it where it is a barrier, else what the wire keeps for it.
func (o Options) CutBudget() time.Duration {
	if o.Cut == CutBarrier {
		return o.PauseBudget
	}
	return o.PauseBudget + o.SkewBudget
}

// Cut is how the cuts of all guests become one consistent cut.
type Cut uint8

const (
	// CutColoured cuts each guest on its own: frames carry the epoch of their
	// sender, and no guest waits for another.
	CutColoured Cut = iota
	// CutBarrier lets no guest run before all have stopped.
	CutBarrier
)

var cutTexts = []string{"coloured", "barrier"}

// String returns the word that operators use.
func (c Cut) String() string { return enumText("cut", uint8(c), cutTexts...) }

// ParseCut reads what String returns.
func ParseCut(text string) (Cut, error) {
	n, err := enumValue("cut", text, cutTexts)
	return Cut(n), err
}

// Mode is how the memory of a guest gets into its image.
type Mode uint8

const (
	ModeAuto Mode = iota // live where that can be, else stop
	ModeLive             // protected in the pause, stored while the guest runs
	ModeStop             // copied in the pause
)

var modeTexts = []string{"auto", "live", "stop"}

// String returns the word that operators use.
func (m Mode) String() string { return enumText("mode", uint8(m), modeTexts...) }

// ParseMode reads what String returns.
func ParseMode(text string) (Mode, error) {
	n, err := enumValue("mode", text, modeTexts)
	return Mode(n), err
}

// Request is one call of the coordinator to one member.
type Request struct {
	Call    Call
	Round   ID
	Token   Token
	To      NodeID
	Members []NodeID // Prepare only: all members, To among them
	Options Options  // Prepare only
	Outcome Outcome  // Finish only
}

// String returns the request as it stands in scripts and logs.
func (r Request) String() string {
	if r.Call == CallFinish {
		return fmt.Sprintf("%s(%s, %s) token %d to %s", r.Call, r.Round, r.Outcome, r.Token, r.To)
	}
	return fmt.Sprintf("%s(%s) token %d to %s", r.Call, r.Round, r.Token, r.To)
}

// Result says how a call ended.
type Result uint8

const (
	ResultNone       Result = iota
	ResultDone              // it was done
	ResultFailed            // the member said no, and why; asking again is pointless
	ResultUnanswered        // no answer, or a busy member: done or not; ask again
)

// String returns the result's name.
func (r Result) String() string {
	return enumText("result", uint8(r), "none", "done", "failed", "unanswered")
}

// Reply is how one call ended.
type Reply struct {
	Call    Call
	Round   ID
	From    NodeID
	Result  Result
	Reason  string // of a failure
	Payload []byte // of a success; opaque here, at most what the driver allows
}

// String returns the reply as it stands in scripts and logs.
func (r Reply) String() string {
	s := fmt.Sprintf("%s(%s) %s from %s", r.Call, r.Round, r.Result, r.From)
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	return s
}
