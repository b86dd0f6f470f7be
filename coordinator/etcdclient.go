package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"fermata/coordinator/store/etcdstore"
	"fermata/protocol/address"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

const (
	// etcdDialTimeout bounds the first contact with a real etcd.
	etcdDialTimeout = 5 * time.Second
	// etcdRetry spaces attempts to log in to an etcd that does not answer.
	etcdRetry = time.Second
)

// checkEndpoint refuses what the client of etcd would misunderstand in silence.
func checkEndpoint(endpoint string, hasTLS, hasUser bool) error {
	shown, rest := endpoint, endpoint
	if at := strings.LastIndex(endpoint, "@"); at >= 0 {
		scheme, _, found := strings.Cut(endpoint, "://")
		if rest = endpoint[at+1:]; found {
			rest = scheme + "://" + rest
		}
		return fmt.Errorf("endpoint %s: a user and a password in the address are not used; set username and password_file", rest)
	}
	scheme, place, found := strings.Cut(rest, "://")
	if !found {
		if path, isUnix := strings.CutPrefix(rest, "unix:"); isUnix {
			return checkSocket(path)
		}
		scheme, place = "", rest
	}
	switch scheme {
	case "unix", "unixs":
		return checkSocket(place)
	case "", "http", "https":
	default:
		return fmt.Errorf("endpoint %s: %s is none of http, https and unix", shown, scheme)
	}
	if scheme == "http" && hasTLS {
		return fmt.Errorf("endpoint %s: http does not use the certificate that is given; write https", shown)
	}
	u, err := url.Parse("//" + place)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("endpoint %s: want SCHEME://HOST:PORT", shown)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return fmt.Errorf("endpoint %s: the port is missing", shown)
	}
	if encrypted := scheme == "https" || scheme == "" && hasTLS; hasUser && !encrypted && identity.PlaintextAllowed(u.Host) != nil {
		return fmt.Errorf("endpoint %s: the password would travel in clear; write https", shown)
	}
	return nil
}

// checkSocket refuses the path of a socket that the client of etcd would misread: it
// parses an endpoint as a URL.
func checkSocket(path string) error {
	if strings.ContainsAny(path, "%#? ") {
		return fmt.Errorf("endpoint unix:%s: the client of etcd takes no %%, #, ? or space in a path", path)
	}
	return address.Check("unix:" + path)
}

// connectEtcd returns a client of a real etcd. With a user it logs in first, and
// waits for an etcd that does not answer until ctx ends.
func (c *Coordinator) connectEtcd(ctx context.Context) (*clientv3.Client, error) {
	e := c.cfg.Etcd
	for told := false; ; told = true {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: slices.Clone(e.Endpoints), TLS: e.TLS, Username: e.Username, Password: e.Password,
			DialTimeout: etcdDialTimeout, DialKeepAliveTime: etcdDialTimeout, DialKeepAliveTimeout: etcdDialTimeout,
			Logger: zap.NewNop(), // its errors come back from the calls
		})
		if err == nil {
			return client, nil
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, clientv3.ErrNoAvailableEndpoints) {
			err = fault.Wrap(fault.Unavailable, err, "")
		}
		explained := etcdstore.Explain(e.Endpoints, err)
		if fault.ClassOf(explained) != fault.Unavailable {
			return nil, explained
		}
		if !told {
			c.log.Warn("etcd does not answer, waiting for it", "error", explained, "endpoints", etcdstore.Reach(ctx, e.Endpoints))
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(etcdRetry):
		}
	}
}
