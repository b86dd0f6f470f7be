// Package round is the checkpoint round as two state machines: Lead, the
// coordinator's half, and Member, a node's half. Given the same inputs they
// give the same outputs: there is no goroutine, clock, socket or disk here.
// PROTOCOL.md, one directory up, has the whole protocol, its invariants by
// number, and why it is right.
//
// # Driving a Lead
//
// One goroutine owns the Lead and does, for ever, what Ready says, in this
// order:
//
//  1. Store Persist. Nothing of this Ready may be done before. If it cannot be
//     stored because another coordinator leads, call Fenced; if for another
//     reason, try again. A Record of PhaseOver means: remove the stored one.
//  2. Begin Decide and every Send, all at once, each on a goroutine that hands
//     its result back to the owner.
//     Decide asks the repository to create the one outcome record of the
//     epoch, exclusively: who is first wins, and every caller learns the
//     winner. It ends in exactly one Decided, with the outcome that the
//     repository holds, or one DecideFailed, or one DecideRefused. At most one
//     runs at a time, in the order given.
//     A Send ends in exactly one Step, also when no answer came: give every
//     call a deadline, and translate what came to ResultDone, ResultFailed (an
//     answer, and it is no) or ResultUnanswered (no answer, or ErrBusy).
//  3. Report Events, and Done to whoever asked for the round. Done comes once,
//     as soon as the outcome is final; the Lead then still tells the members.
//
// Then it waits for a result, a tick, or the operator's wish to Cancel, until
// Over says that nothing more will come. Tick comes from a timer; its length is
// the driver's choice and gives Budgets their meaning.
//
// A new coordinator that finds a stored Record hands it to RecoverLead, and
// drives that Lead to its end before it begins another round of the cluster.
//
// # Driving a Member
//
// One goroutine owns the Member of a cluster. A request goes to Step; if that
// returns an error, the error is the answer. Otherwise the request stays open
// until a Reply of its Call and Round comes out of Ready, and that answers every
// open request of this Call and Round. While HasReady says so, the driver does
// what Ready says:
//
//  1. Make Journal durable. Nothing of this Ready may be done before. If it
//     cannot be, do nothing of this Ready and call JournalFailed.
//  2. Hand Actions to a worker that carries them out in order, each after the
//     one before. Only Abandon goes ahead at once: it cancels what is in
//     progress of its round and drops what waits of it. The owner must not wait
//     for the worker: Tick, which ends pauses, must come through.
//  3. Send Replies.
//
// An action ends with the event that its documentation names, or with
// StepFailed; either is handed back to the owner. When an action other than
// ResumeGuests fails, the worker drops those behind it of the same Ready.
//
// A failing link, guest or capture is reported with StepFailed as well, at any
// time. After a restart of the agent the driver hands the last Journal to
// RecoverMember before it serves requests.
package round
