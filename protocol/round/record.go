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

	// Recorded says that the repository is known to hold the outcome. A round
	// that is over without it is set aside: somebody still has to have its
	// abort recorded, or to find out its outcome (see Unsettled).
	Recorded bool
}

// Unsettled reports whether the repository still has to be asked about a round
// that is over: to record its abort, which frees what the round has stored, or
// to say how it ended.
func (r Record) Unsettled() bool { return r.Phase == PhaseOver && !r.Recorded }

// MayBeCommitted reports whether somebody may have asked the repository to
// record a commit. Only then does the repository have to be asked how the round
// ended: a coordinator stores PhaseCommit before it asks for a commit, so after
// a record of an earlier phase was replaced by that of an abort nobody can ask.
func (r Record) MayBeCommitted() bool { return r.Phase >= PhaseCommit && r.Outcome != Aborted }
