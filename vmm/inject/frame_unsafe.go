package inject

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The frame is what the kernel puts on the stack of a thread before it runs a
// signal's handler (setup_rt_frame in arch/x86/kernel/signal_64.c; struct
// rt_sigframe in arch/x86/include/asm/sigframe.h), with the thread's own
// registers in it:
//
//	rsp while a call is injected
//	│
//	├─ pretcode    8 B   address of code that calls rt_sigreturn(2)
//	├─ ucontext  304 B   flags, link, stack, general registers, signal mask
//	├─ siginfo   128 B   not looked at
//	╎  (padding to 64)
//	├─ fpstate           what PTRACE_GETREGSET gives, and a closing word
//	╎
//	rsp of the thread, less the 128 bytes below it that are its own
//
// The injected call is made by "syscall; ret". Nobody executes the ret while we
// live. If we die, the thread goes on by itself: the ret leads to rt_sigreturn(2),
// which puts all registers and the signal mask back.
const (
	ucontextAt = 8
	contextAt  = ucontextAt + 40           // uc_mcontext: struct sigcontext_64
	maskAt     = contextAt + 256           // uc_sigmask
	infoAt     = maskAt + 8                // struct siginfo
	frameBytes = (infoAt + 128 + 63) &^ 63 // fpstate is aligned to 64

	redZone = 128 // that a function may use below rsp (System V ABI, AMD64, 3.2.2)

	// Flags of the context (arch/x86/include/uapi/asm/ucontext.h).
	flagXState, flagSegmentSS, flagStrictSS = 1, 2, 4

	// noStack is no mode of an alternate stack, so rt_sigreturn leaves the thread's
	// as it is (restore_altstack in kernel/signal.c ignores the error).
	noStack = 0x7f00

	// Marks around the state of the floating point unit (struct _fpx_sw_bytes in
	// arch/x86/include/uapi/asm/sigcontext.h).
	magic1, magic2 = 0x46505853, 0x46505845
	softwareAt     = 464 // in the state, bytes reserved for software
	legacyBytes    = 512 // of FXSAVE
	headerBytes    = 64  // of XSAVE

	maxXState    = 64 << 10      // bytes; AMX has 11 KiB
	tilesAt      = 2752          // where the state of AMX begins, behind that of all before it
	tileFeatures = 1<<17 | 1<<18 // its bits in XCR0

	ptraceGetSigmask = 0x420a // PTRACE_GETSIGMASK
	noteXState       = 0x202  // NT_X86_XSTATE
)

// writeFrame writes the frame below the thread's stack. A process without the
// code for it, or whose stack has no room, gets none: it is then in danger while a
// call is injected, should we die.
func (t *Thread) writeFrame() error {
	if t.code.sigreturn == 0 {
		return nil
	}
	state, err := t.extendedState()
	if err != nil {
		return err
	}
	mask, err := t.signalMask()
	if err != nil {
		return err
	}
	at := (t.saved.Rsp - redZone - uint64(len(state)) - 8) &^ 63 // of fpstate
	frame := t.makeFrame(state, mask, at)
	at -= frameBytes
	if !t.code.holds(at, t.saved.Rsp) {
		return nil
	}
	local := []unix.Iovec{{Base: &frame[0]}}
	local[0].SetLen(len(frame))
	n, err := unix.ProcessVMWritev(t.pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(frame)}}, 0)
	if err != nil {
		return t.request("write frame", err)
	}
	if n == len(frame) {
		t.frame = at
	}
	return nil
}

// makeFrame makes the bytes from pretcode on; fpstate will lie at address at.
func (t *Thread) makeFrame(state []byte, mask, at uint64) []byte {
	f := make([]byte, frameBytes+len(state)+4)
	put := func(off int, values ...uint64) {
		for i, v := range values {
			binary.LittleEndian.PutUint64(f[off+8*i:], v)
		}
	}
	r := t.resumed()
	put(0, t.code.sigreturn)
	put(ucontextAt, flagXState|flagSegmentSS|flagStrictSS, 0, 0, noStack, 0)
	put(contextAt, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
		r.Rdi, r.Rsi, r.Rbp, r.Rbx, r.Rdx, r.Rax, r.Rcx, r.Rsp, r.Rip, r.Eflags,
		r.Cs|r.Ss<<48, 0, 0, 0, 0, at) // cs, gs, fs, ss of 16 bits; err, trapno, oldmask, cr2, fpstate
	put(maskAt, mask)
	x := f[frameBytes:]
	copy(x, state)
	software := x[softwareAt:]
	binary.LittleEndian.PutUint32(software, magic1)
	binary.LittleEndian.PutUint32(software[4:], uint32(len(state)+4)) // extended_size
	features := binary.LittleEndian.Uint64(state[softwareAt:])        // the kernel's XCR0: see extendedState
	binary.LittleEndian.PutUint64(software[8:], features)
	binary.LittleEndian.PutUint32(software[16:], uint32(len(state))) // xstate_size
	binary.LittleEndian.PutUint32(x[len(state):], magic2)
	return f
}

// resumed is the thread's registers as it would come back to its program: a call
// that was interrupted is made again, as the kernel would see to
// (arch_do_signal_or_restart in arch/x86/kernel/signal.c).
func (t *Thread) resumed() unix.PtraceRegs {
	const (
		restartSys, restartNoIntr, restartNoHand, restartBlock = 512, 513, 514, 516 // include/linux/errno.h
		syscallBytes                                           = 2
	)
	r := t.saved
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case restartSys, restartNoIntr, restartNoHand:
		r.Rax = r.Orig_rax
		r.Rip -= syscallBytes
	case restartBlock:
		// rt_sigreturn(2) forgets how far the call was, so that it ends with EINTR.
		r.Rax = unix.SYS_RESTART_SYSCALL
		r.Rip -= syscallBytes
	}
	return r
}

// extendedState returns the thread's floating point and vector registers, in the
// layout of XSAVE. The kernel tells at softwareAt which parts are in it
// (copy_xstate_to_uabi_buf in arch/x86/kernel/fpu/xstate.c).
//
// Why unsafe: the request takes a structure with a pointer. Why safe: the buffer
// lives until the call returns, and the kernel writes no more than its length.
func (t *Thread) extendedState() ([]byte, error) {
	b := make([]byte, maxXState)
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(t.tid), noteXState, uintptr(unsafe.Pointer(&v)), 0, 0)
	if errno != 0 {
		return nil, t.request("PTRACE_GETREGSET", errno)
	}
	b = b[:v.Len]
	if len(b) < legacyBytes+headerBytes {
		return nil, fmt.Errorf("%w: floating point state of %d bytes", ErrUnsupported, len(b))
	}
	// The kernel takes back no more than a thread may have: tiles only from one that
	// has asked for them (Documentation/arch/x86/xstate.rst), and then uses them.
	features, used := b[softwareAt:], binary.LittleEndian.Uint64(b[legacyBytes:])
	if len(b) > tilesAt && used&tileFeatures == 0 {
		binary.LittleEndian.PutUint64(features, binary.LittleEndian.Uint64(features)&^tileFeatures)
		b = b[:tilesAt]
	}
	return b, nil
}

// signalMask returns the signals that the thread blocks.
//
// Why unsafe and why safe: as in extendedState.
func (t *Thread) signalMask() (mask uint64, err error) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSigmask, uintptr(t.tid), unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)), 0, 0)
	if errno != 0 {
		return 0, t.request("PTRACE_GETSIGMASK", errno)
	}
	return mask, nil
}
