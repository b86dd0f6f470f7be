package etcdembed

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// makeRoom gives an etcd that had used up its space some of it back: old revisions
// are what fills it, and the alarm stays until somebody clears it. With what is live
// alone beyond the quota, the alarm comes back with the next write.
func (s *Server) makeRoom(ctx context.Context, client *clientv3.Client) error {
	resp, err := client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("ask for alarms: %w", err)
	}
	for _, a := range resp.Alarms {
		if a.Alarm != etcdserverpb.AlarmType_NOSPACE {
			continue
		}
		s.logger.Warn("embedded etcd had used up its space, compacting it", "dir", s.cfg.Dir)
		now, err := client.Get(ctx, "fermata")
		if err != nil {
			return fmt.Errorf("read the newest revision: %w", err)
		}
		_, err = client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return fmt.Errorf("compact: %w", err)
		}
		if _, err := client.Defragment(ctx, client.Endpoints()[0]); err != nil {
			return fmt.Errorf("defragment: %w", err)
		}
		if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
			return fmt.Errorf("clear the alarm: %w", err)
		}
		s.logger.Info("embedded etcd has space again", "dir", s.cfg.Dir)
	}
	return nil
}
