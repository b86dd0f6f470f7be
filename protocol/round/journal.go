package round

// MemberPhase is where a Member stands.
type MemberPhase uint8

const (
	MemberIdle       MemberPhase = iota // no round yet
	MemberPreparing                     // guests run
	MemberPrepared                      // guests run; waiting for Cut
	MemberCutting                       // gates closed, guests being stopped
	MemberStopped                       // every guest stands still or, in a coloured cut, is cut; waiting for state and markers
	MemberClosed                        // state saved, channels closed; guests being resumed, where they are not
	MemberResumed                       // guests run; waiting for Persist
	MemberPersisting                    // guests run; image on its way to the repository
	MemberPersisted                     // image durable; outcome not known
	MemberFinished                      // outcome known
	MemberFailing                       // gave up; guests being resumed
	MemberFailed                        // gave up; guests run
)

var memberPhaseTexts = []string{"idle", "preparing", "prepared", "cutting", "stopped", "closed", "resumed",
	"persisting", "persisted", "finished", "failing", "failed"}

// String returns the phase's name.
func (p MemberPhase) String() string { return enumText("phase", uint8(p), memberPhaseTexts...) }

// MarshalText returns String.
func (p MemberPhase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (p *MemberPhase) UnmarshalText(text []byte) error {
	n, err := enumValue("phase", string(text), memberPhaseTexts)
	*p = MemberPhase(n)
	return err
}

// Journal is what a Member must know after a restart of its agent. The newest
// one replaces those before it.
//
// There is none between MemberPreparing and MemberPersisted: whatever happened
// between them, an agent that restarts there gives the round up and lets the
// guests run, so that no disk is written while a guest stands still.
type Journal struct {
	Cluster string
	Token   Token // largest seen
	Epoch   Epoch // of the last round heard of
	Lead    Token // of the coordinator that began it
	Phase   MemberPhase
	Outcome Outcome
	Payload []byte // of PersistDone, to repeat the answer
}
