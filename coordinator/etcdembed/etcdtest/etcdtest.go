// Package etcdtest gives tests an etcd: embedded and fast, or Debian's as a
// process that can be killed.
package etcdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"fermata/coordinator/etcdembed"
)

// startBudget bounds the start of an etcd on a busy machine.
const startBudget = 30 * time.Second

// Client starts an embedded etcd that lives as long as the test, without
// fsync, and returns a client of it.
func Client(t testing.TB) *clientv3.Client {
	t.Helper()
	s, err := etcdembed.New(etcdembed.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan *clientv3.Client, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- s.Run(ctx, func(ctx context.Context, c *clientv3.Client) error {
			ready <- c
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("embedded etcd: %v", err)
		}
	})
	select {
	case c := <-ready:
		return c
	case err := <-ended:
		ended <- context.Canceled // told here
		t.Fatalf("start embedded etcd: %v", err)
	case <-time.After(startBudget):
		t.Fatal("embedded etcd is not ready")
	}
	return nil
}

// Dial returns another client of the etcd at endpoints, closed with the test.
func Dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: startBudget, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // a context that has ended is its only error
	return c
}
