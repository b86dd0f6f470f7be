//go:build failpoints

package failpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled tells whether points can be armed in this build.
const Enabled = true

// armed is the points of this process; see the package comment.
var armed struct {
	mu     sync.Mutex
	points map[Point]*arming // guarded by mu
	seen   map[Point]int     // guarded by mu; how often each point was reached
}

type arming struct {
	action  Action
	reached int           // guarded by armed.mu
	gone    chan struct{} // closed when disarmed
}

// Inject does what the point is armed with, if it is. The error is that of an
// error action, or of a context that ended a delay or hang.
func Inject(ctx context.Context, p Point) error {
	if err := rearm(); err != nil {
		return err
	}
	armed.mu.Lock()
	if armed.seen == nil {
		armed.seen = make(map[Point]int)
	}
	armed.seen[p]++
	a := armed.points[p]
	act := false
	if a != nil {
		a.reached++
		act = a.action.on == 0 || a.action.on == a.reached
	}
	armed.mu.Unlock()
	if !act {
		return nil
	}
	return a.do(ctx, p)
}

func (a *arming) do(ctx context.Context, p Point) error {
	switch a.action.kind {
	case kindError:
		if a.action.text != "" {
			return fmt.Errorf("failpoint %s: %s", p, a.action.text)
		}
		return fmt.Errorf("failpoint %s", p)
	case kindDelay:
		timer := time.NewTimer(a.action.delay)
		defer timer.Stop()
		return a.wait(ctx, p, timer.C)
	case kindHang:
		return a.wait(ctx, p, nil)
	case kindKill:
		return signal(p, syscall.SIGKILL)
	case kindStop:
		return signal(p, syscall.SIGSTOP)
	default:
		return fmt.Errorf("failpoint %s: action %d", p, a.action.kind)
	}
}

func (a *arming) wait(ctx context.Context, p Point, end <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("failpoint %s: %w", p, context.Cause(ctx))
	case <-end:
		return nil
	case <-a.gone:
		return nil
	}
}

// signal sends sig to this process. It goes to the calling thread, which takes
// it before tgkill(2) returns; a signal to the process may be taken by another
// thread a moment later, and something behind the point be done. A stopped
// process goes on here when it is continued.
func signal(p Point, sig syscall.Signal) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), sig); err != nil {
		return fmt.Errorf("failpoint %s: %w", p, err)
	}
	return nil
}

// rearm arms what the file of this process says, if there is one; see DirEnv.
func rearm() error {
	dir := os.Getenv(DirEnv)
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	armed.mu.Lock()
	for _, a := range armed.points {
		close(a.gone)
	}
	clear(armed.points)
	armed.mu.Unlock()
	return ArmFile(path)
}

// Reached returns how often a point was reached in this process, armed or not.
func Reached(p Point) int {
	armed.mu.Lock()
	defer armed.mu.Unlock()
	return armed.seen[p]
}

// Arm arms a point with an action, until disarm is called. Callers that hang in
// it are let go then.
func Arm(p Point, action string) (disarm func(), err error) {
	plan, err := ParsePlan(string(p) + "=" + action)
	if err != nil {
		return nil, err
	}
	if err := arm(plan); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { disarmPoint(p) }), nil
}

// ArmAll arms what FERMATA_FAILPOINTS says, for the life of the process.
func ArmAll(spec string) error {
	plan, err := ParsePlan(spec)
	if err != nil {
		return err
	}
	return arm(plan)
}

// ArmFile arms what a file says, for the life of the process, and removes it. A
// file that is not there arms nothing.
func ArmFile(path string) error {
	spec, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("failpoints: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("failpoints: %w", err)
	}
	return ArmAll(strings.TrimSpace(string(spec)))
}

func arm(plan Plan) error {
	armed.mu.Lock()
	defer armed.mu.Unlock()
	for p := range plan {
		if armed.points[p] != nil {
			return fmt.Errorf("failpoint %s: armed already", p)
		}
	}
	if armed.points == nil {
		armed.points = make(map[Point]*arming)
	}
	for p, a := range plan {
		armed.points[p] = &arming{action: a, gone: make(chan struct{})}
	}
	return nil
}

func disarmPoint(p Point) {
	armed.mu.Lock()
	defer armed.mu.Unlock()
	if a := armed.points[p]; a != nil { // else a file has replaced it
		close(a.gone)
		delete(armed.points, p)
	}
}
