package round

// Step names one step of a round. The names are those of PROTOCOL.md and are
// used alike in logs, errors, metrics and progress.
type Step string

const (
	StepPrepare        Step = "prepare"         // check, reserve, arm write protection; guests run
	StepGate           Step = "gate"            // hold back what would reach a guest
	StepDrain          Step = "drain"           // wait until a guest has taken what was on its way in
	StepStop           Step = "stop"            // stop the guests, take in what they have sent
	StepSaveDevices    Step = "save-devices"    // save device state
	StepSaveMemory     Step = "save-memory"     // fix the memory image: copy it, or protect it
	StepMark           Step = "mark"            // tell every member that nothing older follows
	StepCloseChannels  Step = "close-channels"  // wait for the marker of every member
	StepRecordChannels Step = "record-channels" // keep the held frames that are older than the markers
	StepResume         Step = "resume"          // let the guests run, open the gates
	StepPersist        Step = "persist"         // make the node's image durable
	StepCommit         Step = "commit"          // write the outcome record: committed
	StepAbort          Step = "abort"           // write the outcome record: aborted
	StepFinish         Step = "finish"          // tell the members the outcome
)

// Steps lists every step in the order of a round.
func Steps() []Step {
	return []Step{
		StepPrepare, StepGate, StepDrain, StepStop, StepSaveDevices, StepSaveMemory, StepMark,
		StepCloseChannels, StepRecordChannels, StepResume, StepPersist, StepCommit, StepAbort, StepFinish,
	}
}
