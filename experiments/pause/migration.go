package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// migrationBudget bounds what a peer may take for one checkpoint.
	migrationBudget = 5 * time.Minute

	// migrationPoll spaces questions for a migration whose event was missed.
	migrationPoll = 50 * time.Millisecond
)

// takeByStopAndCopy is what a user of plain QEMU does.
func takeByStopAndCopy(ctx context.Context, p *peer, image string) (taken, error) {
	t := taken{method: stopAndCopy, pauseFrom: "host clock, from before stop to the answer of cont"}
	m, err := p.prepare(ctx, image, false)
	if err != nil {
		return t, err
	}
	defer m.close()

	begun := time.Now()
	if err := p.monitor.Stop(ctx); err != nil {
		return t, err
	}
	if _, err := m.run(ctx); err != nil {
		return t, err
	}
	if err := p.resume(ctx); err != nil {
		return t, err
	}
	t.pause = time.Since(begun)
	return t, m.persist(ctx, begun, &t)
}

// resume continues a guest that was migrated, as soon as QEMU allows it: it
// refuses for an instant after the migration has completed.
func (p *peer) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, migrationBudget, errors.New("QEMU does not finish a completed migration"))
	defer cancel()
	for {
		state, err := p.monitor.QueryStatus(ctx)
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if state.Status == "postmigrate" {
			return p.monitor.Cont(ctx)
		}
	}
}

// takeInBackground lets QEMU protect the guest's memory and write it while the
// guest runs. QEMU stops and resumes the guest by itself. The method is the name
// for it.
func takeInBackground(method string) takeFunc {
	return func(ctx context.Context, p *peer, image string) (taken, error) {
		return p.snapshot(ctx, method, image)
	}
}

func (p *peer) snapshot(ctx context.Context, method, image string) (taken, error) {
	t := taken{method: method, pauseFrom: "QEMU's events STOP and RESUME"}
	m, err := p.prepare(ctx, image, true)
	if err != nil {
		return t, err
	}
	defer m.close()

	begun := time.Now()
	events, err := m.run(ctx)
	if err != nil {
		return t, err
	}
	stop, resume := events["STOP"], events["RESUME"]
	t.pause = resume.Sub(stop)
	if stop.IsZero() || resume.IsZero() { // QEMU 7.2 drops one at times
		progress, err := p.progress(ctx)
		if err != nil {
			return t, err
		}
		t.pause, t.pauseFrom = time.Duration(progress.Downtime)*time.Millisecond, "QEMU's downtime, whole milliseconds"
	}
	if t.pause <= 0 {
		return t, fmt.Errorf("QEMU tells no pause: events %v, downtime %s", events, t.pause)
	}
	return t, m.persist(ctx, begun, &t)
}

// migration is one of a peer's guest into a file.
type migration struct {
	peer   *peer
	image  string   // alone in a directory of its own
	closed *os.File // inotify(7): readable when the writer has closed the image
}

// prepare does everything that needs not be timed.
func (p *peer) prepare(ctx context.Context, image string, inBackground bool) (_ *migration, err error) {
	capabilities := []map[string]any{{"capability": "events", "state": true}}
	if inBackground {
		capabilities = append(capabilities, map[string]any{"capability": "background-snapshot", "state": true})
	}
	if err := p.monitor.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return nil, err
	}
	// 0 is no limit; the default is 128 MiB/s.
	if err := p.monitor.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 0}, nil); err != nil {
		return nil, err
	}
	closed, err := watchImage(image)
	if err != nil {
		return nil, fmt.Errorf("watch image: %w", err)
	}
	for {
		select {
		case <-p.monitor.Events(): // of the guest's boot
		default:
			return &migration{peer: p, image: image, closed: closed}, nil
		}
	}
}

// watchImage tells when another process has written a file of that name. The
// file must not exist before: ext4 flushes a file that replaces another when it
// is closed, which QEMU waits for before it answers cont.
func watchImage(image string) (*os.File, error) {
	dir := filepath.Dir(image)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE); err != nil {
		return nil, errors.Join(err, watch.Close())
	}
	return watch, nil
}

func (m *migration) close() { _ = m.closed.Close() } // nothing was written to it

// run migrates the guest and returns when QEMU has written all of it, with the
// times of the events until then, by QEMU's clock.
func (m *migration) run(ctx context.Context) (map[string]time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, migrationBudget, fmt.Errorf("migration has not ended within %s", migrationBudget))
	defer cancel()
	if err := m.peer.monitor.Execute(ctx, "migrate", map[string]string{"uri": "exec:cat > '" + m.image + "'"}, nil); err != nil {
		return nil, err
	}
	events := map[string]time.Time{}
	ticker := time.NewTicker(migrationPoll)
	defer ticker.Stop()
	for {
		select {
		case e, ok := <-m.peer.monitor.Events():
			if !ok {
				return nil, errors.New("QEMU ended")
			}
			events[e.Name] = e.At
			if e.Name != "MIGRATION" {
				continue
			}
			var data struct {
				Status string `json:"status"`
			}
			if err := json.Unmarshal(e.Data, &data); err != nil {
				return nil, fmt.Errorf("read event MIGRATION: %w", err)
			}
			if done, err := m.ended(ctx, data.Status); done || err != nil {
				return events, err
			}
		case <-ticker.C:
			progress, err := m.peer.progress(ctx)
			if err != nil {
				return nil, err
			}
			if done, err := m.ended(ctx, progress.Status); done || err != nil {
				return events, err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// ended tells whether status is the last one, and whether it is a good one.
func (m *migration) ended(ctx context.Context, status string) (bool, error) {
	switch status {
	case "completed":
		return true, nil
	case "failed", "cancelled":
		progress, err := m.peer.progress(ctx)
		return true, errors.Join(fmt.Errorf("migration %s: %s", status, progress.Error), err)
	default:
		return false, nil
	}
}

// migrationProgress is what of query-migrate is read.
type migrationProgress struct {
	Status   string `json:"status"`
	Error    string `json:"error-desc"`
	Downtime int64  `json:"downtime"` // ms
	RAM      struct {
		NormalBytes uint64 `json:"normal-bytes"` // pages that are not zero
	} `json:"ram"`
}

func (p *peer) progress(ctx context.Context) (migrationProgress, error) {
	var progress migrationProgress
	err := p.monitor.Execute(ctx, "query-migrate", nil, &progress)
	return progress, err
}

// persist waits until the image is complete, makes it durable and notes what
// it took since begun.
func (m *migration) persist(ctx context.Context, begun time.Time, t *taken) error {
	stop := context.AfterFunc(ctx, func() { _ = m.closed.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := m.closed.Read(make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)); err != nil {
		return fmt.Errorf("wait for the image to be written: %w", errors.Join(err, context.Cause(ctx)))
	}
	f, err := os.Open(m.image)
	if err != nil {
		return fmt.Errorf("make image durable: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make image durable: %w", err)
	}
	t.durable = time.Since(begun)
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("size of image: %w", err)
	}
	progress, err := m.peer.progress(ctx)
	if err != nil {
		return err
	}
	state, err := m.peer.monitor.QueryStatus(ctx)
	if err != nil {
		return err
	}
	if !state.Running {
		return fmt.Errorf("guest is %s after its checkpoint", state.Status)
	}
	t.storedBytes, t.nonZeroBytes = uint64(fi.Size()), progress.RAM.NormalBytes
	return nil
}
