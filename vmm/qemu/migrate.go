package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"fermata/vmm"
)

// migratePoll spaces the questions whether a migration has completed, once its
// stream has ended: what is left takes QEMU well under a millisecond.
const (
	migratePollFirst = 200 * time.Microsecond
	migratePollMost  = 5 * time.Millisecond
)

// migrateProgress is the part of query-migrate that matters here.
type migrateProgress struct {
	Status    string `json:"status"`
	ErrorDesc string `json:"error-desc"`
	// Blocked says, since QEMU 6.0, why the machine cannot be migrated at all.
	Blocked []string `json:"blocked-reasons"`
	RAM     struct {
		Total uint64 `json:"total"` // bytes of the RAM blocks that take part
	} `json:"ram"`
}

func (m *Machine) queryMigrate(ctx context.Context) (migrateProgress, error) {
	var p migrateProgress
	err := m.execute(ctx, "query-migrate", nil, &p)
	return p, err
}

// ignoreShared tells the monitor whether a migration leaves shared RAM out.
func (m *Machine) ignoreShared(ctx context.Context, on bool) error {
	return m.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": on}},
	}, nil)
}

// saveByMigration saves the devices by a migration that leaves RAM out.
//
// QEMU refuses to migrate a guest again that has not run since it was migrated
// (moved says so). Nothing of it has changed then, so the record of the first
// time, kept in the machine's directory for other handles too, is right.
func (m *Machine) saveByMigration(ctx context.Context, moved bool) ([]byte, error) {
	kept := m.state.Config.migratedPath()
	if moved {
		record, err := os.ReadFile(kept)
		if err == nil {
			_, err = decodeRecord(record)
		}
		if err != nil {
			return nil, fmt.Errorf("guest was migrated and has not run since, and its record is lost: %w", err)
		}
		return record, nil
	}
	if err := m.ignoreShared(ctx, true); err != nil {
		return nil, err
	}
	// 0 is no limit; the default of 128 MiB/s would lengthen the pause.
	if err := m.execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 0}, nil); err != nil {
		return nil, err
	}
	stream, err := m.migrateOut(ctx)
	if err != nil {
		return nil, errors.Join(err, m.cancelMigration(context.WithoutCancel(ctx)))
	}
	record := deviceState{method: methodMigrate, stream: stream}.encode()
	if err := os.WriteFile(kept+".tmp", record, 0o600); err != nil {
		return nil, err
	}
	return record, os.Rename(kept+".tmp", kept)
}

// migrateOut runs the migration into a pipe and reads it to its end.
func (m *Machine) migrateOut(ctx context.Context) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	mon, err := m.connect(ctx)
	if err == nil {
		err = m.explain(ctx, mon.GetFD(ctx, sendName, w))
	}
	w.Close() // QEMU has its copy; with ours open the stream would have no end
	if err != nil {
		return nil, err
	}
	if err := m.execute(ctx, "migrate", map[string]string{"uri": "fd:" + sendName}, nil); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, errors.Join(err, mon.CloseFD(closing, sendName))
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	limit := int64(maxStateBytes(m.state.Config.MemoryBytes))
	stream, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read device stream: %w", err)
	}
	if err := m.checkSize(int64(len(stream))); err != nil {
		return nil, err
	}
	return stream, m.awaitMigrated(ctx)
}

// awaitMigrated returns when the migration has completed. A stream may be
// small and hold RAM all the same when RAM is mostly zero, so the bytes of RAM
// that took part are checked as well.
func (m *Machine) awaitMigrated(ctx context.Context) error {
	return poll(ctx, migratePollFirst, migratePollMost, func() (bool, error) {
		p, err := m.queryMigrate(ctx)
		if err != nil {
			return false, err
		}
		switch p.Status {
		case "completed":
			if p.RAM.Total >= m.state.Config.MemoryBytes {
				return false, fmt.Errorf("%w: %d bytes of memory took part in the migration", vmm.ErrStateSize, p.RAM.Total)
			}
			return true, nil
		case "failed", "cancelled":
			return false, fmt.Errorf("migration %s: %s", p.Status, p.ErrorDesc)
		default:
			return false, nil
		}
	})
}

// cancelMigration ends a migration that is under way, if one is, so that a
// later Continue does not run under it.
func (m *Machine) cancelMigration(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	if err := m.execute(ctx, "migrate_cancel", nil, nil); err != nil {
		return fmt.Errorf("cancel migration: %w", err)
	}
	return poll(ctx, migratePollFirst, migratePollMost, func() (bool, error) {
		p, err := m.queryMigrate(ctx)
		if err != nil {
			return false, err
		}
		switch p.Status {
		case "", "none", "completed", "failed", "cancelled":
			return true, nil
		default:
			return false, nil
		}
	})
}
