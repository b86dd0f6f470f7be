package round

import "fmt"

// ActionKind is one piece of work that a Member asks of its driver.
type ActionKind uint8

const (
	ActionNone ActionKind = iota

	// PrepareGuests checks and reserves what the round needs, and arms write
	// protection while the guests run. Answered with GuestsPrepared.
	PrepareGuests
	// GateAndDrain holds back frames to the guests, and waits until the guests
	// have taken what was on its way. StopGuests follows.
	GateAndDrain
	// StopGuests stops every guest and takes in every frame they have sent.
	// Answered with GuestsStopped.
	StopGuests
	// CutGuests cuts every guest on its own: holds back frames to it, waits until
	// it has taken what was on its way, stops it, takes in what it has sent, gives
	// it the colour of the epoch, saves its state, and lets it run. No guest may
	// stand still longer than the pause budget: the driver sees to that. Answered
	// with GuestsCut.
	CutGuests
	// SendMarkers sends a marker to each of Members, on the path of the frames
	// and behind them. It is never repeated: a marker that is lost took frames
	// along, and the round must fail.
	SendMarkers
	// SaveState saves device state and fixes the memory image. Answered with
	// StateSaved.
	SaveState
	// RecordChannels keeps the held frames that came before the marker of
	// their sender. ResumeGuests follows.
	RecordChannels
	// ResumeGuests lets every guest run and opens its gates. It may come without
	// any guest being stopped, and more than once. Answered with GuestsResumed.
	ResumeGuests
	// StartPersist makes the image durable. Answered with PersistDone.
	StartPersist
	// KeepImage tells that the image is part of a checkpoint: what was written
	// before it may be forgotten. Not answered.
	KeepImage
	// Abandon cancels what is in progress of the round and drops what waits of
	// it. It is the only action that does not wait for those before it. Not
	// answered, and neither need be what it cancelled.
	Abandon
	// DiscardImage frees what the node holds for the round; the next image
	// builds on an older one. Not answered.
	DiscardImage
	// ForgetImage frees what the node holds for an image whose outcome it will
	// not learn. It must leave alone what is in the repository, which may be
	// committed; the next image builds on none. Not answered.
	ForgetImage
)

// String returns the kind's name.
func (k ActionKind) String() string {
	return enumText("action", uint8(k), "None", "PrepareGuests", "GateAndDrain", "StopGuests", "CutGuests", "SendMarkers", "SaveState",
		"RecordChannels", "ResumeGuests", "StartPersist", "KeepImage", "Abandon", "DiscardImage", "ForgetImage")
}

// Step returns the first step of a round that the action takes, for errors and
// progress; empty for an action that is not answered, but SendMarkers and
// RecordChannels, which can fail nevertheless.
func (k ActionKind) Step() Step {
	switch k {
	case PrepareGuests:
		return StepPrepare
	case GateAndDrain:
		return StepGate
	case StopGuests, CutGuests:
		return StepStop
	case SendMarkers:
		return StepMark
	case SaveState:
		return StepSaveDevices
	case RecordChannels:
		return StepRecordChannels
	case ResumeGuests:
		return StepResume
	case StartPersist:
		return StepPersist
	default:
		return ""
	}
}

// Action is one piece of work for the driver of a Member.
type Action struct {
	Kind    ActionKind
	Round   ID
	Members []NodeID // PrepareGuests: all; SendMarkers: the others
	Options Options  // PrepareGuests, CutGuests and RecordChannels
}

// String returns the action as it stands in scripts and logs.
func (a Action) String() string { return fmt.Sprintf("%s(%s)", a.Kind, a.Round) }
