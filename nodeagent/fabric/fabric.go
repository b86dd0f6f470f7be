package fabric

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// maxConnections bounds the connections served at a time, strangers included.
	// A cluster needs one for each peer, which leaves room for thousands.
	maxConnections = 4096
	// acceptRetry spaces attempts to accept when the process is out of descriptors.
	acceptRetry = 50 * time.Millisecond
)

// Fabric is the switch of one node.
//
// Concurrency: safe for use by several goroutines.
type Fabric struct {
	cfg      Config        // immutable
	log      hclog.Logger  // immutable
	sentinel []byte        // immutable; see Drain
	links    atomic.Uint64 // links made so far: the life of each
	used     atomic.Int64  // bytes; see charge
	total    atomic.Int64  // bytes; see SetTotalBytes

	mu       sync.Mutex
	running  bool                // guarded by mu; Run was called
	closed   bool                // guarded by mu; Run has ended or is ending
	clusters map[string]*cluster // guarded by mu
}

// New makes a switch without clusters. It does not accept links before Run.
func New(cfg Config) (*Fabric, error) {
	cfg.applyDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("fabric configuration: %w", err)
	}
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never returns an error
	f := &Fabric{
		cfg:      cfg,
		log:      cfg.Logger,
		sentinel: newSentinel(nonce),
		clusters: make(map[string]*cluster),
	}
	f.SetTotalBytes(cfg.TotalBytes)
	return f, nil
}

// Run accepts the links of other nodes until ctx ends or the listener breaks.
// It then removes every cluster and returns when no goroutine of the fabric is
// left; from then on the fabric refuses all calls with ErrClosed. The end of
// ctx is no error. It can be called once.
func (f *Fabric) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.running {
		f.mu.Unlock()
		return errors.New("run fabric: called twice")
	}
	f.running = true
	f.mu.Unlock()

	var handlers sync.WaitGroup
	serving, stop := context.WithCancel(ctx)
	release := context.AfterFunc(serving, func() { _ = f.cfg.Listener.Close() })
	defer release()
	err := f.accept(serving, &handlers)
	stop()
	errs := []error{err, f.shutdown()}
	handlers.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("run fabric: %w", err)
	}
	return nil
}

// accept serves each connection in a goroutine of handlers until ctx ends.
func (f *Fabric) accept(ctx context.Context, handlers *sync.WaitGroup) error {
	slots := make(chan struct{}, maxConnections)
	for {
		conn, err := f.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept links: %w", err)
		case err != nil:
			// Out of descriptors, or a connection gone before it was taken.
			f.log.Warn("link not accepted", "error", err)
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			handlers.Go(func() {
				defer func() { <-slots }()
				f.serve(ctx, conn)
			})
		default:
			f.log.Warn("link not accepted: too many", "remote", conn.RemoteAddr(), "limit", maxConnections)
			_ = conn.Close()
		}
	}
}

// shutdown removes all clusters for good.
func (f *Fabric) shutdown() error {
	f.mu.Lock()
	f.closed = true
	clusters := slices.Collect(maps.Values(f.clusters))
	clear(f.clusters)
	f.mu.Unlock()
	var errs []error
	for _, c := range clusters {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

func (f *Fabric) clusterNamed(name string) (*cluster, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	c := f.clusters[name]
	if c == nil {
		return nil, ErrUnknownCluster
	}
	return c, nil
}
