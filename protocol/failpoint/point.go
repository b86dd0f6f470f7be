// Package failpoint gives names to the moments at which a process may die,
// stall or meet an error, so that tests can make it happen there and nowhere else.
//
// The code that matters calls
//
//	if err := failpoint.Inject(ctx, failpoint.AgentAfterStop); err != nil {
//
// which costs nothing in an ordinary build: without the build tag failpoints,
// Inject is an empty function that the compiler removes. With the tag, a test
// arms a point with Arm, or a whole process is started with
//
//	FERMATA_FAILPOINTS="nodeagent/after-stop=kill;coordinator/before-commit=delay(2s)@3"
//
// which cmd reads once at its start and hands to ArmAll. A file of the same text in
// an agent's state directory arms its next life alone.
//
// A point has one action:
//
//	error        Inject returns an error of this package
//	error(TEXT)  the same with a text
//	delay(TIME)  Inject takes this much longer
//	kill         the process gets SIGKILL
//	stop         the process gets SIGSTOP: alive, and does nothing
//	hang         Inject does not return until its context ends
//
// each followed by @N to act the N-th time only that the point is reached.
//
// The armed points are the one piece of state here that belongs to the process
// and not to a value: a point can be anywhere in the code.
package failpoint

// Env names the environment variable that cmd hands to ArmAll.
const Env = "FERMATA_FAILPOINTS"

// DirEnv names the environment variable of a directory in which a running process finds
// what is to be armed: a file that is named by its process id, with the text of Env. It
// is read and removed when a point is reached, before that is, and replaces what was
// armed.
const DirEnv = "FERMATA_FAILPOINTS_DIR"

// FileName is the file in an agent's state directory that cmd hands to ArmFile.
const FileName = "failpoints"

// Point names a moment: the package, and before or after what.
type Point string

// None is no point: nothing can be armed there.
const None Point = ""

// The points of a coordinator.
const (
	CoordinatorBeforeStore   Point = "coordinator/before-store"   // round's record not yet in etcd
	CoordinatorAfterStore    Point = "coordinator/after-store"    // stored, nothing sent
	CoordinatorAfterPrepare  Point = "coordinator/after-prepare"  // every member is ready
	CoordinatorAfterCut      Point = "coordinator/after-cut"      // every guest runs again
	CoordinatorAfterPersist  Point = "coordinator/after-persist"  // every image is durable
	CoordinatorBeforeCommit  Point = "coordinator/before-commit"  // outcome record not yet written
	CoordinatorAfterCommit   Point = "coordinator/after-commit"   // committed, nobody told
	CoordinatorBeforeAbort   Point = "coordinator/before-abort"   // outcome record not yet written
	CoordinatorAfterAbort    Point = "coordinator/after-abort"    // aborted in the record
	CoordinatorAfterFinish   Point = "coordinator/after-finish"   // one member told
	CoordinatorAfterElection Point = "coordinator/after-election" // leader, nothing recovered yet
	CoordinatorAfterCheck    Point = "coordinator/after-check"    // start, restart: all checked, nothing stored
	CoordinatorAfterRecord   Point = "coordinator/after-record"   // start, restart, stop: stored, no guest ended
	CoordinatorAfterDestroy  Point = "coordinator/after-destroy"  // start, restart, stop: guests of the earlier life ended
	CoordinatorAfterCreate   Point = "coordinator/after-create"   // start, restart: guests created, none released
	CoordinatorAfterRelease  Point = "coordinator/after-release"  // start, restart: guests of one node released
	CoordinatorBeforeEnd     Point = "coordinator/before-end"     // start, restart, stop: done, not recorded
)

// The points of a node agent, named after the steps of a round.
const (
	AgentAfterPrepare        Point = "nodeagent/after-prepare"
	AgentBeforeCut           Point = "nodeagent/before-cut"
	AgentAfterGate           Point = "nodeagent/after-gate"
	AgentAfterDrain          Point = "nodeagent/after-drain"
	AgentAfterStop           Point = "nodeagent/after-stop"
	AgentAfterSaveDevices    Point = "nodeagent/after-save-devices"
	AgentAfterSaveMemory     Point = "nodeagent/after-save-memory"
	AgentBeforeMark          Point = "nodeagent/before-mark"
	AgentAfterMark           Point = "nodeagent/after-mark"
	AgentAfterCloseChannels  Point = "nodeagent/after-close-channels"
	AgentAfterRecordChannels Point = "nodeagent/after-record-channels"
	AgentBeforeResume        Point = "nodeagent/before-resume"
	AgentAfterResume         Point = "nodeagent/after-resume"
	AgentBeforePersist       Point = "nodeagent/before-persist"
	AgentAfterPersist        Point = "nodeagent/after-persist" // durable, not journaled
	AgentBeforeJournal       Point = "nodeagent/before-journal"
	AgentAfterJournal        Point = "nodeagent/after-journal" // journaled, nobody told
	AgentBeforeFinish        Point = "nodeagent/before-finish"
	AgentAfterFinish         Point = "nodeagent/after-finish"
	AgentAfterCreate         Point = "nodeagent/after-create" // restart: one guest created
	AgentBeforeRelease       Point = "nodeagent/before-release"
)

// Points lists every point there is. No other can be armed or reached.
func Points() []Point {
	return []Point{
		CoordinatorBeforeStore, CoordinatorAfterStore, CoordinatorAfterPrepare, CoordinatorAfterCut,
		CoordinatorAfterPersist, CoordinatorBeforeCommit, CoordinatorAfterCommit, CoordinatorBeforeAbort,
		CoordinatorAfterAbort, CoordinatorAfterFinish, CoordinatorAfterElection, CoordinatorAfterCheck,
		CoordinatorAfterRecord, CoordinatorAfterDestroy, CoordinatorAfterCreate, CoordinatorAfterRelease,
		CoordinatorBeforeEnd,
		AgentAfterPrepare, AgentBeforeCut, AgentAfterGate, AgentAfterDrain, AgentAfterStop, AgentAfterSaveDevices,
		AgentAfterSaveMemory, AgentBeforeMark, AgentAfterMark, AgentAfterCloseChannels,
		AgentAfterRecordChannels, AgentBeforeResume, AgentAfterResume, AgentBeforePersist, AgentAfterPersist,
		AgentBeforeJournal, AgentAfterJournal, AgentBeforeFinish, AgentAfterFinish, AgentAfterCreate,
		AgentBeforeRelease,
	}
}
