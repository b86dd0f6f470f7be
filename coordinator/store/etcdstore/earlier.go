package etcdstore

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// EndEarlier ends the leases of leaders and nodes that are left of an earlier life of
// this etcd. When etcd starts it gives every lease its whole time again: a leader that
// died with it would be waited for, and nodes that nobody has heard of for hours would
// count as alive.
//
// Call it when etcd is part of this process and has just been started. A leader elsewhere
// that has outlived that is deposed, and is elected again.
func EndEarlier(ctx context.Context, client *clientv3.Client, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	for _, below := range []string{ElectionPrefix(prefix) + "/", keysBelow(prefix).living()} {
		resp, err := client.Get(ctx, below, clientv3.WithPrefix())
		if err != nil {
			return fmt.Errorf("look for leases of an earlier life: %w", err)
		}
		for _, kv := range resp.Kvs {
			if kv.Lease == 0 {
				continue
			}
			if _, err := client.Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return fmt.Errorf("end a lease of an earlier life: %w", err)
			}
		}
	}
	return nil
}
