package etcdstore

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"
)

// reachTimeout bounds the look whether anybody listens at an endpoint.
const reachTimeout = time.Second

// Reach looks at every endpoint and says what is there, for a log: the client of
// etcd says only that nobody answered in time.
func Reach(ctx context.Context, endpoints []string) []string {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	found := make([]string, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() { found[i] = e + ": " + look(ctx, e) })
	}
	wg.Wait()
	return found
}

func look(ctx context.Context, endpoint string) string {
	network, address := "tcp", endpoint
	if scheme, rest, found := strings.Cut(endpoint, "://"); found {
		address = rest
		if strings.HasPrefix(scheme, "unix") {
			network = "unix"
		}
	} else if path, isUnix := strings.CutPrefix(endpoint, "unix:"); isUnix {
		network, address = "unix", path
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err == nil {
		_ = conn.Close() // it only had to be there
		return "accepts connections, but does not answer as an etcd that lets this coordinator in"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return err.Error()
}
