package round

// Phase is where a Lead stands.
type Phase uint8

const (
	PhaseIdle    Phase = iota // not begun
	PhasePrepare              // waiting for every member to be ready
	PhaseCut                  // waiting until the guests of every member run again
	PhasePersist              // waiting for every image to be durable
	PhaseCommit               // asking the repository to record: committed
	PhaseAbort                // asking the repository to record: aborted
	PhaseFinish               // outcome recorded; telling the members
	PhaseOver                 // nothing more will come
)

var phaseTexts = []string{"idle", "prepare", "cut", "persist", "commit", "abort", "finish", "over"}

// String returns the phase's name.
func (p Phase) String() string { return enumText("phase", uint8(p), phaseTexts...) }

// MarshalText returns String.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (p *Phase) UnmarshalText(text []byte) error {
	n, err := enumValue("phase", string(text), phaseTexts)
	*p = Phase(n)
	return err
}

// Record is what must be known of a round in flight to take it over. The
// driver stores the newest one; the one of PhaseOver means that the stored
// record is no longer needed.
type Record struct {
	Round   ID
	Token   Token // of the coordinator that wrote the record
	Members []NodeID
	Options Options
	Phase   Phase
	Outcome Outcome // from PhaseFinish on
	Reason  string  // of an abort
}
