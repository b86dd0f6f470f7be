// Package etcdembed runs an etcd of one member inside the coordinator, for an
// installation on one machine. What uses it speaks to it as to any etcd,
// through a client and a listener.
//
// There is no peer listener: a cluster of several members is a matter of real
// etcd processes. Whoever may connect may read and write everything, so the
// listener is either a unix socket in a directory of ours, a loopback address,
// or wants a certificate of role coordinator.
package etcdembed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"fermata/protocol/identity"
)

// Config holds what a Server needs.
type Config struct {
	// Dir is where the data are kept; made when missing, mode 0700. Required.
	Dir string
	// Listen is unix:PATH or IP:PORT; port 0 takes any. Default unix:DIR/etcd.sock.
	Listen string
	// Identity proves the server and the client, both of role coordinator. nil:
	// plain text, which only loopback addresses and unix sockets may have.
	Identity *identity.Identity
	Logger   hclog.Logger // optional: discards when nil

	// UnsafeNoFsync trades the durability of every write for speed. Tests only.
	UnsafeNoFsync bool
}

// maxSocketPath is what sun_path takes (unix(7)), its end included.
const maxSocketPath = 107

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: missing"))
	}
	listen := c.listen()
	if path, isUnix := strings.CutPrefix(listen, "unix:"); isUnix {
		if len(path) > maxSocketPath {
			errs = append(errs, fmt.Errorf("listen: socket path %s of %d bytes, at most %d", path, len(path), maxSocketPath))
		}
	} else if host, _, err := net.SplitHostPort(listen); err != nil || host != "localhost" && net.ParseIP(host) == nil {
		errs = append(errs, fmt.Errorf("listen: %q is neither unix:PATH nor IP:PORT", listen))
	}
	if c.Identity == nil {
		if err := identity.PlaintextAllowed(listen); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
		}
	} else if p := c.Identity.Peer(); p.Role != identity.RoleCoordinator {
		errs = append(errs, fmt.Errorf("identity: %s, want role %s", p, identity.RoleCoordinator))
	}
	return errors.Join(errs...)
}

func (c Config) listen() string {
	if c.Listen == "" {
		return "unix:" + filepath.Join(c.Dir, "etcd.sock")
	}
	return c.Listen
}

// Server is an etcd that runs as long as its Run.
type Server struct {
	cfg    Config       // immutable
	logger hclog.Logger // immutable
}

// New checks the configuration. Nothing runs yet.
func New(cfg Config) (*Server, error) {
	if cfg.Dir != "" {
		abs, err := filepath.Abs(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("configure embedded etcd: %w", err)
		}
		cfg.Dir = abs
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure embedded etcd: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg, logger: cfg.Logger}, nil
}

const (
	// readyTimeout is how long a start may take. A fresh member elects itself
	// in less than a second; one with a long log replays it first.
	readyTimeout = time.Minute
	dialTimeout  = 5 * time.Second

	// tick and election make a single member elect itself quickly. There is
	// nobody whose heartbeats could be late.
	tickMs     = 20
	electionMs = 200

	// retention of old revisions: nothing reads them but a client that lists
	// what is there, in seconds.
	retention = "10m"
)

// memberName is the name of the only member; peerURL the address it would
// have. Nothing listens there.
const (
	memberName = "fermata"
	peerURL    = "http://localhost:2380"
)

// ErrStopped is the cause of serve's context when etcd ended by itself.
var ErrStopped = errors.New("embedded etcd has stopped")

// Run starts etcd, calls serve with a client once it answers, and ends both
// when serve returns; the client must not be used after that. serve's context
// ends with ctx, or with ErrStopped as its cause if etcd ends by itself. The
// error is serve's, or that of etcd.
func (s *Server) Run(ctx context.Context, serve func(context.Context, *clientv3.Client) error) (err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	lock, err := lockDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := s.removeStaleSocket(); err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	bridge := newZapBridge(s.logger)
	streams := newGate()
	cfg, err := s.etcdConfig(bridge, streams)
	if err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		// The channel is closed at the end of Close below, at the latest.
		for err := range e.Err() {
			cancel(fmt.Errorf("%w: %w", ErrStopped, err))
		}
	}()
	defer func() {
		// What fails while it is being ended is no news.
		bridge.quiet()
		// Both before Close, which otherwise waits seconds for other clients.
		streams.close()
		e.Server.HardStop()
		e.Close()
		<-watched
		cancel(nil)
	}()
	if err := waitReady(ctx, e); err != nil {
		return fmt.Errorf("start embedded etcd: %w", err)
	}
	client, err := s.connect(e)
	if err != nil {
		return err
	}
	s.logger.Info("embedded etcd is ready", "endpoint", client.Endpoints()[0])
	// Closed before the server is, and whoever still uses it learns of that at
	// once; its only error is that of a context that has ended.
	defer func() { _ = client.Close() }()
	if err := s.makeRoom(ctx, client); err != nil {
		s.logger.Error("embedded etcd has used up its space and cannot be compacted", "dir", s.cfg.Dir, "error", err)
	}
	err = serve(ctx, client)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrStopped) {
		return cause
	}
	return err
}

func waitReady(ctx context.Context, e *embed.Etcd) error {
	timer := time.NewTimer(readyTimeout)
	defer timer.Stop()
	select {
	case <-e.Server.ReadyNotify():
		return nil
	case <-e.Server.StopNotify():
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("not ready after %s", readyTimeout)
	}
}

func (s *Server) connect(e *embed.Etcd) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints:   []string{s.endpoint(e)},
		DialTimeout: dialTimeout,
		Logger:      zap.NewNop(), // every error also comes back to the caller
	}
	if path, isUnix := strings.CutPrefix(s.cfg.listen(), "unix:"); isUnix {
		// The client parses an endpoint as a URL, in which not every path can stand.
		cfg.DialOptions = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		})}
	}
	if s.cfg.Identity != nil {
		cfg.TLS = s.cfg.Identity.Client(identity.RoleCoordinator, s.cfg.Identity.Peer().Name)
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to embedded etcd: %w", err)
	}
	return client, nil
}

// endpoint is the listener's address for a client, with the port it got.
func (s *Server) endpoint(e *embed.Etcd) string {
	scheme, address := e.Config().ListenClientUrls[0].Scheme, e.Clients[0].Addr().String()
	if strings.HasPrefix(scheme, "unix") {
		return scheme + ":" + (&url.URL{Path: address}).EscapedPath()
	}
	return scheme + "://" + address
}

func (s *Server) etcdConfig(bridge *zapBridge, streams *gate) (*embed.Config, error) {
	client, err := s.clientURL()
	if err != nil {
		return nil, err
	}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name = memberName
	cfg.Dir = filepath.Join(s.cfg.Dir, "data")
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	cfg.InitialCluster = memberName + "=" + peerURL
	cfg.ListenClientUrls = []url.URL{*client}
	cfg.AdvertiseClientUrls = []url.URL{*client}
	cfg.EnableGRPCGateway = false // nobody speaks JSON to it
	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = retention
	cfg.UnsafeNoFsync = s.cfg.UnsafeNoFsync
	cfg.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(streams.intercept)}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(bridge))
	if id := s.cfg.Identity; id != nil {
		files := id.Files()
		cfg.ClientTLSInfo.CertFile = files.Cert
		cfg.ClientTLSInfo.KeyFile = files.Key
		cfg.ClientTLSInfo.TrustedCAFile = files.CA
		cfg.ClientTLSInfo.ClientCertAuth = true
		// Every coordinator's certificate has this name and no other does.
		cfg.ClientTLSInfo.AllowedHostnames = []string{identity.RoleCoordinator.HostName()}
		cfg.TlsMinVersion = "TLS1.3"
	}
	return cfg, nil
}

func (s *Server) clientURL() (*url.URL, error) {
	if path, isUnix := strings.CutPrefix(s.cfg.listen(), "unix:"); isUnix {
		if !filepath.IsAbs(path) {
			abs, err := filepath.Abs(path)
			if err != nil {
				return nil, err
			}
			path = abs
		}
		return &url.URL{Scheme: s.scheme("unix"), Path: path}, nil
	}
	return &url.URL{Scheme: s.scheme("http"), Host: s.cfg.listen()}, nil
}

// scheme is the form of a URL scheme that says whether there is TLS.
func (s *Server) scheme(plain string) string {
	if s.cfg.Identity != nil {
		return plain + "s"
	}
	return plain
}

// removeStaleSocket removes the socket of a coordinator that was killed.
func (s *Server) removeStaleSocket() error {
	path, isUnix := strings.CutPrefix(s.cfg.listen(), "unix:")
	if !isUnix {
		return nil
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close() // it only had to be there
		return fmt.Errorf("%s is served by another process", path)
	}
	return os.Remove(path)
}
