package guests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Pair is one direction between two guests on one wire.
type Pair struct{ From, To, Wire string }

// Totals adds up the canaries of a cluster.
type Totals struct {
	Sent, Received uint64
	Lost           int64
	Doubled        uint64
	Reordered      uint64
	Corrupt        uint64 // canary's own checks and the kernels' UDP checksums
	Broken         uint64 // TCP connections
}

// Clean tells whether every datagram arrived once, whole and in its turn, and no
// connection broke.
func (t Totals) Clean() bool {
	return t.Lost == 0 && t.Doubled == 0 && t.Reordered == 0 && t.Corrupt == 0 && t.Broken == 0
}

// Summary is the verdict of one run.
type Summary struct {
	MPIChecksum string  // "" as long as the MPI program has not ended
	MPI         MPIDone // zero with MPIChecksum ""

	Pairs  map[Pair]CanaryFinal    // of the guests whose canary has ended
	Kernel map[string]CanaryKernel // of the same guests
	Totals Totals                  // over Pairs

	Dirty    map[string]Dirty // the last account of each guest that rewrites memory
	DirtyBad uint64           // pages and disk records any guest found bad: see Summarise

	MPIComplete    bool // the MPI program has ended well
	CanaryComplete bool // the canaries of all guests have ended and agree on who they are
	Complete       bool // both
}

// Summarise reads the consoles, by the names of the guests, as far as they go.
//
// Only the last results of a guest count, and only while nothing after them
// shows that the guest went back in time: after a rollback the same console may
// hold the results of a run that no longer happened. A console may begin
// in the middle of a line.
//
// Bad pages and records are the exception: they count even when the guest went
// back to before it found them.
func Summarise(consoles map[string]io.Reader) (Summary, error) {
	s := Summary{Pairs: map[Pair]CanaryFinal{}, Kernel: map[string]CanaryKernel{}, Dirty: map[string]Dirty{}}
	ended := 0
	for _, guest := range slices.Sorted(maps.Keys(consoles)) {
		var v verdict
		if err := v.read(consoles[guest]); err != nil {
			return Summary{}, fmt.Errorf("read console of guest %s: %w", guest, err)
		}
		if v.mpi != nil {
			s.MPI, s.MPIChecksum = *v.mpi, v.mpi.Checksum
			s.MPIComplete = v.mpiStatus == 0
		}
		if v.dirty != nil {
			s.Dirty[guest] = *v.dirty
		}
		s.DirtyBad += v.bad
		if v.canary == nil {
			continue
		}
		if v.canary.end.Me != guest {
			return Summary{}, fmt.Errorf("console of guest %s is that of %s", guest, v.canary.end.Me)
		}
		s.add(*v.canary)
		if v.canary.end.Peers == len(consoles)-1 {
			ended++
		}
	}
	s.CanaryComplete = ended == len(consoles) && ended > 0
	s.Complete = s.MPIComplete && s.CanaryComplete
	return s, nil
}

func (s *Summary) add(r canaryReport) {
	for pair, f := range r.finals {
		s.Pairs[pair] = f
		s.Totals.Sent += f.Sent
		s.Totals.Received += f.Received
		s.Totals.Lost += f.Lost
		s.Totals.Doubled += f.Doubled
		s.Totals.Reordered += f.Reordered
	}
	s.Kernel[r.end.Me] = r.kernel
	s.Totals.Corrupt += r.end.Corrupt + r.kernel.UDPChecksum
	s.Totals.Broken += r.kernel.Broken
}

// canaryReport is one guest's complete report: the lines from CANARY-KERNEL to
// CANARY-END.
type canaryReport struct {
	kernel CanaryKernel
	finals map[Pair]CanaryFinal
	end    CanaryEnd
}

// verdict is what one console says so far. Results remember the tick they
// followed: a later tick with that number or a smaller one shows that the guest
// went back to before them.
type verdict struct {
	tick uint64 // number of the last one

	mpi       *MPIDone
	mpiTick   uint64
	mpiStatus int

	canary     *canaryReport
	canaryTick uint64
	open       *canaryReport // begun, and not ended yet

	dirty *Dirty
	bad   uint64 // the most that any account said
}

// maxLineBytes bounds a line of the console. Ours are far shorter; a longer one
// is noise and skipped.
const maxLineBytes = 64 << 10

func (v *verdict) read(r io.Reader) error {
	in := bufio.NewReaderSize(r, maxLineBytes)
	for {
		text, err := in.ReadSlice('\n')
		switch {
		case err == nil:
			if line, ok := Parse(string(text)); ok {
				v.step(line)
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil // a last line without its end is not whole
		default:
			return err
		}
	}
}

func (v *verdict) step(line Line) {
	switch b := line.Body.(type) {
	case Tick:
		v.stepTick(b)
	case MPIStart, MPIIter:
		if v.mpi != nil {
			*v = verdict{dirty: v.dirty, bad: v.bad} // back before all results: a canary ends after the program
		}
	case MPIDone:
		v.mpi, v.mpiTick = &b, v.tick
	case MPIExit:
		v.mpiStatus = b.Status
	case Dirty:
		v.dirty = &b
		v.bad = max(v.bad, b.Bad+b.BadRecords)
	case CanaryStart:
		v.canary, v.open = nil, nil
	case CanaryStatus:
		if b.Phase != "report" {
			v.canary, v.open = nil, nil
		}
	case CanaryKernel:
		v.open = &canaryReport{kernel: b, finals: map[Pair]CanaryFinal{}}
	case CanaryFinal:
		if v.open != nil {
			v.open.finals[Pair{From: b.From, To: b.Me, Wire: b.Wire}] = b
		}
	case CanaryEnd:
		if v.open != nil && len(v.open.finals) == b.Peers*b.Wires {
			v.open.end = b
			v.canary, v.canaryTick = v.open, v.tick
		}
		v.open = nil
	}
}

func (v *verdict) stepTick(t Tick) {
	if t.N <= v.tick {
		if v.mpiTick >= t.N {
			v.mpi, v.mpiStatus = nil, 0
		}
		if v.canaryTick >= t.N {
			v.canary, v.open = nil, nil
		}
	}
	v.tick = t.N
}
