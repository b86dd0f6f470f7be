package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
	"fermata/protocol/api"
)

const (
	// keptTooLong is the age from which old revisions show that nobody compacts
	// etcd. The retention that its manual gives as an example is one hour.
	keptTooLong = 3 * time.Hour
	// keptTooMany spares an etcd in which nothing happens the warning.
	keptTooMany = 1000
)

// history is what the leader knows of the age of etcd's revisions. It belongs to
// the goroutine that calls Maintain.
type history struct {
	compactAfter time.Duration // immutable
	moments      []moment      // oldest first
	warned       bool          // that nobody compacts etcd
}

// moment says which revision was the newest at a time.
type moment struct {
	at       time.Time
	revision int64
}

// note adds a moment and returns the newest revision that is at least as old as
// age, zero when there is none. Moments older than that one are forgotten.
func (h *history) note(now moment, age time.Duration) int64 {
	h.moments = append(h.moments, now)
	old := -1
	for i, m := range h.moments {
		if now.at.Sub(m.at) >= age {
			old = i
		}
	}
	if old < 0 {
		return 0
	}
	h.moments = h.moments[old:]
	return h.moments[0].revision
}

// Maintain implements store.Store. One goroutine calls it.
func (s *Store) Maintain(ctx context.Context, f store.Fence) error {
	if f.Key == "" || f.Token == 0 {
		return store.Fenced(f)
	}
	resp, err := s.transact(ctx, s.holds(f), clientv3.OpGet(s.keys.identity))
	switch {
	case err != nil:
		return s.readError(err, "maintain the store")
	case !resp.Succeeded:
		return store.Fenced(f)
	}
	return errors.Join(s.keepHistoryShort(ctx, resp.Header.Revision), s.checkAlarms(ctx), s.recordLost(ctx, f))
}

// keepHistoryShort has etcd forget old revisions, or checks that it does so itself.
func (s *Store) keepHistoryShort(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	h := &s.history
	now := moment{s.now(), revision}
	if h.compactAfter > 0 {
		old := h.note(now, h.compactAfter)
		if old == 0 {
			return nil
		}
		if _, err := s.client.Compact(ctx, old); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return s.readError(err, fmt.Sprintf("compact etcd to revision %d", old))
		}
		return nil
	}
	old := h.note(now, keptTooLong)
	if h.warned || old == 0 || revision-old < keptTooMany {
		return nil
	}
	_, err := s.client.Get(ctx, s.keys.identity, clientv3.WithRev(old))
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil
	}
	if err != nil {
		return s.readError(err, "look for old revisions")
	}
	h.warned = true
	s.log.Warn("nobody compacts etcd, which fills up: set its --auto-compaction-retention, or etcd.compact_after of the coordinator",
		"endpoints", s.client.Endpoints(), "revisions", revision-old, "kept-for", keptTooLong)
	return nil
}

// checkAlarms reports the alarms of etcd: while one is raised, writes are refused.
func (s *Store) checkAlarms(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	resp, err := s.client.AlarmList(ctx)
	if err != nil {
		return s.readError(err, "ask for alarms")
	}
	for _, a := range resp.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return s.readError(rpctypes.ErrNoSpace, fmt.Sprintf("alarm of member %x", a.MemberID))
		}
		s.log.Error("etcd has raised an alarm", "alarm", a.Alarm.String(), "member", fmt.Sprintf("%x", a.MemberID), "endpoints", strings.Join(s.client.Endpoints(), ","))
	}
	return nil
}

// recordLost writes down when nodes that no longer speak were last seen: what this
// leader remembers of them would be lost with it.
func (s *Store) recordLost(ctx context.Context, f store.Fence) error {
	var errs []error
	for _, info := range s.silent() {
		value, err := encodeNode(info)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		key := s.keys.node(info.GetName())
		err = s.update(ctx, f, "record the loss of node "+info.GetName(), []string{key}, func(found records) ([]clientv3.Op, error) {
			if found[key] == nil {
				return nil, nil // forgotten
			}
			was, err := decodeNode(found[key])
			if err != nil || was.GetLastSeenUnixNs() >= info.GetLastSeenUnixNs() {
				return nil, err
			}
			return []clientv3.Op{clientv3.OpPut(key, value)}, nil
		})
		if err == nil {
			s.letGo(info)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// silent returns what the nodes said last whose lease has run out since.
func (s *Store) silent() []*api.NodeInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*api.NodeInfo
	for _, h := range s.heard {
		if h.info != nil && s.now().Sub(time.Unix(0, h.info.GetLastSeenUnixNs())) > h.ttl {
			out = append(out, h.info)
		}
	}
	return out
}

// letGo forgets what a lost node said, which is in its record now.
func (s *Store) letGo(info *api.NodeInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard[info.GetName()].info == info {
		delete(s.heard, info.GetName())
	}
}

// Renew implements store.Store. The leader's key goes in the same transaction, so
// that every candidate campaigns anew and learns the new identity.
func (s *Store) Renew(ctx context.Context, f store.Fence) error {
	id, err := newIdentity()
	if err != nil {
		return err
	}
	return s.update(ctx, f, "renew the identity of the store", nil, func(records) ([]clientv3.Op, error) {
		return []clientv3.Op{clientv3.OpPut(s.keys.identity, formatIdentity(id)), clientv3.OpDelete(f.Key)}, nil
	})
}
