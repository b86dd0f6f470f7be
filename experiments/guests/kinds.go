package guests

import "time"

// Seconds is a time or a length in a guest's own clock, which stands still while
// the guest does.
type Seconds float64

// Duration converts s.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Ready says that the guest has its addresses and begins its work.
type Ready struct {
	Guest  string
	Uptime Seconds
	Kernel string
	Role   string
	Count  int // guests in the cluster
}

// Tick is the heartbeat.
type Tick struct {
	N      uint64  // from 1
	Uptime Seconds // monotonic: does not jump over a pause or a restart
	Wall   Seconds // since 1970: lags after a pause or a restart until stepped
}

// MPIStart, MPIIter and MPIDone come from rank 0 of the MPI program.
type MPIStart struct {
	Side, Iterations, Ranks int
	Uptime                  Seconds
}

// MPIIter tells how far the program is.
type MPIIter struct {
	Iteration int
	Residual  string // exact, hexadecimal floating point
	Checksum  string // of the grid after this iteration
	Uptime    Seconds
}

// MPIDone is the result of the MPI program.
type MPIDone struct {
	Side, Iterations, Ranks int
	Residual                string
	Checksum                string // does not depend on Ranks
	Seconds                 Seconds
}

// MPIExit is the launcher's exit status; 0 is success.
type MPIExit struct{ Status int }

// CanaryStart says that the guest knows all its peers and sends from now on.
type CanaryStart struct {
	Me     string
	Peers  int
	Uptime Seconds
}

// CanaryStatus is the canary's account so far, over all peers.
type CanaryStatus struct {
	Me    string
	Phase string // greet, send, settle or report

	Sent, Received uint64
	Missing        uint64 // gaps; what is only late counts, too
	Doubled        uint64
	Reordered      uint64
	Corrupt        uint64
	Gap            Seconds // longest time between two arrivals from one peer
}

// CanaryKernel is what the guest's own kernel refused or threw away: when a
// datagram is lost, these numbers tell whether the wire did it.
type CanaryKernel struct {
	Me string

	UDPInErrors      uint64 // all UDP receive errors; the next two are part of it
	UDPReceiveBuffer uint64 // socket buffer full
	UDPChecksum      uint64 // damaged before it got here: the wire's doing
	UDPSendBuffer    uint64 // queue full; repeated, so not lost
	TCPTimeouts      uint64 // retransmission time-outs, of all connections (TCPTimeouts of /proc/net/netstat)
	TCPRetransmits   uint64 // segments
	TCPResets        uint64 // of established connections
	Broken           uint64 // of the canary's own connections
	DeviceRxDropped  uint64 // of any protocol: after a restart also QEMU's announcements (RARP) of the peers
	DeviceTxDropped  uint64
	DeviceErrors     uint64
	Refused          uint64 // sends that had to be repeated
	Slipped          uint64 // sends given up before they had a number: the guest had no processor
}

// CanaryFinal is the exact account of one direction between two guests on one wire.
type CanaryFinal struct {
	Me, From string // receiver and sender
	Wire     string // udp, eth or tcp

	Sent      uint64 // as told by the sender at the end
	Received  uint64 // distinct datagrams
	Lost      int64  // Sent - Received
	Doubled   uint64
	Reordered uint64
	Gap       Seconds // longest time between two arrivals
}

// CanaryEnd follows a guest's CanaryFinal lines.
type CanaryEnd struct {
	Me      string
	Peers   int
	Wires   int    // on which each peer was sent to
	Corrupt uint64 // datagrams that are not what any guest sent
}

// DirtyStart says that the memory is filled and will now be rewritten.
type DirtyStart struct {
	Pages   uint64 // of 4 KiB
	Ballast uint64 // pages behind them that are only looked at
	Threads int
	Rate    float64 // MiB a second; 0 = as fast as possible
	Address uint64  // of the first page, in the program
	Uptime  Seconds
}

// Dirty is the account of the program that rewrites memory: DIRTY about the
// time since the last one, DIRTY-END about all of it.
type Dirty struct {
	Pages      uint64
	Generation uint64  // how often all were rewritten
	Written    uint64  // pages rewritten so far
	Rate       float64 // MiB a second
	Gap        Seconds // longest time in which a thread wrote at most a millisecond's worth
	Bad        uint64  // pages that were not what was written last, so far
	Records    uint64  // written to the disk so far, all durable
	BadRecords uint64
	Uptime     Seconds
	Ended      bool // DIRTY-END
}

// DirtyBad is one page that was not what was written last.
type DirtyBad struct {
	Page, Generation           uint64 // what should have been there
	Fault                      string // stale, early, misplaced or torn
	FoundPage, FoundGeneration uint64 // what the page said it was
}

// DirtyExit is the program's exit status; 0 is success, also when it found bad
// pages. 137 says that the guest had not the memory for it.
type DirtyExit struct{ Status int }

func decodeDirty(v *values, ended bool) any {
	return Dirty{Pages: v.count("pages"), Generation: v.count("generation"), Written: v.count("written"),
		Rate: v.number("rate"), Gap: v.seconds("gap"), Bad: v.count("bad"),
		Records: v.count("records"), BadRecords: v.count("bad-records"), Uptime: v.seconds("uptime"), Ended: ended}
}

// SecretStart says that a guest holds its secret, and how fermata-guest ended that told
// the host; -1: it was not asked to.
type SecretStart struct {
	Bytes  uint64
	Status int
	Uptime Seconds
}

// SecretState says what the secret has become: whole, zero or torn.
type SecretState struct {
	State  string
	Uptime Seconds
}

// Restarted is what fermata-guest was told of a restart, as JSON.
type Restarted struct{ Told string }

// HPCCStart says that HPC Challenge begins.
type HPCCStart struct {
	N, Ranks int
	Uptime   Seconds
}

// HPCC says which part of HPC Challenge runs.
type HPCC struct {
	Section string // "" before the first
	Uptime  Seconds
}

// HPCCDone is what HPC Challenge found.
type HPCCDone struct {
	Status             int  // of the launcher
	Success            bool // HPC Challenge calls its own run a success
	N                  int
	HPLSeconds         Seconds
	HPLPassed          int // residual checks that passed, one a problem
	HPLFailed          int
	PTRANSResidual     float64 // of the parallel matrix transpose; 0: exact
	RandomAccessErrors uint64
	FFTError           float64 // largest, in units of rounding
}

// TallyStart says that the writer to Redis knows its master.
type TallyStart struct {
	N      uint64 // steps that are in Redis
	Keys   uint64
	Uptime Seconds
}

// Tally is the writer's account of a replicated Redis.
type Tally struct {
	N          uint64 // steps done
	Bad        uint64 // replies and keys that were not what they must be
	Reconnects uint64 // connections to Redis that had to be made again
	Failovers  uint64 // replicas that were made the master
	Syncs      uint64 // whole copies that the master sent to a replica
	Scans      uint64 // comparisons of all keys on both guests
	Lone       uint64 // steps that no replica had
	Master     string
	Replicas   int // that have the last step
	Uptime     Seconds
}

// TallyBad is one reply or key that was not what it must be (the first 16).
type TallyBad struct {
	What, Host string
	Want       uint64 // step
	Got        string
}

// decoders make the body of each known kind.
var decoders = map[string]func(*values) any{
	"READY": func(v *values) any {
		return Ready{Guest: v.text("guest"), Uptime: v.seconds("uptime"), Kernel: v.text("kernel"),
			Role: v.text("role"), Count: v.integer("count")}
	},
	"TICK": func(v *values) any {
		return Tick{N: v.count("n"), Uptime: v.seconds("uptime"), Wall: v.seconds("wall")}
	},
	"MPI-START": func(v *values) any {
		return MPIStart{Side: v.integer("n"), Iterations: v.integer("iterations"), Ranks: v.integer("ranks"),
			Uptime: v.seconds("uptime")}
	},
	"MPI-ITER": func(v *values) any {
		return MPIIter{Iteration: v.integer("iteration"), Residual: v.text("residual"),
			Checksum: v.text("checksum"), Uptime: v.seconds("uptime")}
	},
	"MPI-DONE": func(v *values) any {
		return MPIDone{Side: v.integer("n"), Iterations: v.integer("iterations"), Ranks: v.integer("ranks"),
			Residual: v.text("residual"), Checksum: v.text("checksum"), Seconds: v.seconds("seconds")}
	},
	"MPI-EXIT": func(v *values) any { return MPIExit{Status: v.integer("status")} },
	"CANARY-START": func(v *values) any {
		return CanaryStart{Me: v.text("me"), Peers: v.integer("peers"), Uptime: v.seconds("uptime")}
	},
	"CANARY": func(v *values) any {
		return CanaryStatus{Me: v.text("me"), Phase: v.text("phase"),
			Sent: v.count("sent"), Received: v.count("received"), Missing: v.count("missing"),
			Doubled: v.count("doubled"), Reordered: v.count("reordered"), Corrupt: v.count("corrupt"),
			Gap: v.seconds("gap")}
	},
	"CANARY-KERNEL": func(v *values) any {
		return CanaryKernel{Me: v.text("me"),
			UDPInErrors: v.count("udp-in-errors"), UDPReceiveBuffer: v.count("udp-receive-buffer"),
			UDPChecksum: v.count("udp-checksum"), UDPSendBuffer: v.count("udp-send-buffer"),
			TCPTimeouts: v.count("tcp-timeouts"), TCPRetransmits: v.count("tcp-retransmits"),
			TCPResets: v.count("tcp-resets"), Broken: v.count("broken"),
			DeviceRxDropped: v.count("device-rx-dropped"), DeviceTxDropped: v.count("device-tx-dropped"),
			DeviceErrors: v.count("device-errors"), Refused: v.count("refused"), Slipped: v.count("slipped")}
	},
	"CANARY-FINAL": func(v *values) any {
		f := CanaryFinal{Me: v.text("me"), From: v.text("from"), Wire: v.text("wire"),
			Sent: v.count("sent"), Received: v.count("received"), Doubled: v.count("doubled"), Reordered: v.count("reordered"), Gap: v.seconds("gap")}
		f.Lost = int64(f.Sent) - int64(f.Received)
		return f
	},
	"CANARY-END": func(v *values) any {
		return CanaryEnd{Me: v.text("me"), Peers: v.integer("peers"), Wires: v.integer("wires"), Corrupt: v.count("corrupt")}
	},
	"DIRTY-START": func(v *values) any {
		return DirtyStart{Pages: v.count("pages"), Ballast: v.count("ballast"), Threads: v.integer("threads"), Rate: v.number("rate"),
			Address: v.hexadecimal("address"), Uptime: v.seconds("uptime")}
	},
	"DIRTY":      func(v *values) any { return decodeDirty(v, false) },
	"DIRTY-END":  func(v *values) any { return decodeDirty(v, true) },
	"DIRTY-EXIT": func(v *values) any { return DirtyExit{Status: v.integer("status")} },
	"SECRET-START": func(v *values) any {
		return SecretStart{Bytes: v.count("bytes"), Status: v.integer("status"), Uptime: v.seconds("uptime")}
	},
	"SECRET":    func(v *values) any { return SecretState{State: v.text("state"), Uptime: v.seconds("uptime")} },
	"RESTARTED": func(v *values) any { return Restarted{Told: v.text("told")} },
	"HPCC-START": func(v *values) any {
		return HPCCStart{N: v.integer("n"), Ranks: v.integer("ranks"), Uptime: v.seconds("uptime")}
	},
	"HPCC": func(v *values) any { return HPCC{Section: v.text("section"), Uptime: v.seconds("uptime")} },
	"HPCC-DONE": func(v *values) any {
		return HPCCDone{Status: v.integer("status"), Success: v.integer("success") == 1, N: v.integer("n"), HPLSeconds: v.seconds("hpl-seconds"),
			HPLPassed: v.integer("hpl-passed"), HPLFailed: v.integer("hpl-failed"), PTRANSResidual: v.number("ptrans-residual"),
			RandomAccessErrors: v.count("random-access-errors"), FFTError: v.number("fft-error")}
	},
	"TALLY-START": func(v *values) any {
		return TallyStart{N: v.count("n"), Keys: v.count("keys"), Uptime: v.seconds("uptime")}
	},
	"TALLY": func(v *values) any {
		return Tally{N: v.count("n"), Bad: v.count("bad"), Reconnects: v.count("reconnects"), Failovers: v.count("failovers"),
			Syncs: v.count("syncs"), Scans: v.count("scans"), Lone: v.count("lone"), Master: v.text("master"),
			Replicas: v.integer("replicas"), Uptime: v.seconds("uptime")}
	},
	"TALLY-BAD": func(v *values) any {
		return TallyBad{What: v.text("what"), Host: v.text("host"), Want: v.count("want"), Got: v.text("got")}
	},
	"DIRTY-BAD": func(v *values) any {
		return DirtyBad{Page: v.count("page"), Generation: v.count("generation"), Fault: v.text("fault"),
			FoundPage: v.count("found-page"), FoundGeneration: v.count("found-generation")}
	},
}
