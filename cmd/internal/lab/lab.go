// Package lab runs a whole Fermata on one machine: an etcd, a coordinator and
// several nodes, each in a network namespace with an address of its own. It
// writes the same configuration files that an operator would and runs the same
// daemons from them; it supervises nothing else.
//
// A lab leaves nothing behind when it ends: no process, namespace or memory
// file. Its directory stays, so that its checkpoints can be restarted in the
// next lab there.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.yaml.in/yaml/v3"

	"fermata/coordinator"
	"fermata/imageio/repository"
	"fermata/imageio/seal"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// restartDelay spaces starts of an agent that keeps ending.
const restartDelay = time.Second

// maxNodes is bounded by the addresses of the underlay.
const maxNodes = 100

// Config says what to run. The zero value of an optional field selects the
// default written beside it.
type Config struct {
	Dir        string   // required
	Nodes      int      // default 2
	Repository string   // default: below Dir
	Etcd       []string // endpoints the coordinator is told; default: an embedded etcd

	// Bridges are names of bridges to make on every node, each of them one network: what
	// specifications name as uplinks and bridges.
	Bridges []string

	FabricPlaintext bool // links between nodes without TLS

	// Encrypt draws a key for a repository that is made, unless there is one in Dir, and encrypts it.
	Encrypt bool

	NodeMemoryMiB  int64 // for guests, on each node. Default 4096
	NodeCaptureMiB int64 // for copies of stopped guests, on each node. Default 1024

	Exe      string // the fermata binary; default: this one
	LogLevel string // of the daemons; default info
	Logger   hclog.Logger

	// Ready is called once everything runs; nodes may take another second to
	// register.
	Ready func(socket string)
}

func (c *Config) applyDefaults() error {
	if c.Nodes == 0 {
		c.Nodes = 2
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	var err error
	if c.Exe == "" {
		if c.Exe, err = os.Executable(); err != nil {
			return fmt.Errorf("find own binary: %w", err)
		}
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return fmt.Errorf("lab directory: %w", err)
	}
	if c.Repository == "" {
		c.Repository = layout{c.Dir}.repository()
	}
	if c.Repository, err = filepath.Abs(c.Repository); err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	if c.NodeMemoryMiB == 0 {
		c.NodeMemoryMiB = 4096
	}
	if c.NodeCaptureMiB == 0 {
		c.NodeCaptureMiB = 1024
	}
	return nil
}

// Validate reports every problem at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Nodes < 1 || c.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("nodes: %d, want 1 to %d", c.Nodes, maxNodes))
	}
	for i, b := range c.Bridges {
		if b == "" || len(b) > 15 || strings.ContainsAny(b, "/ ") || slices.Contains(c.Bridges[:i], b) {
			errs = append(errs, fmt.Errorf("bridge %q: want up to 15 characters, no space or slash, each name once", b))
		}
	}
	if c.NodeMemoryMiB < 0 || c.NodeCaptureMiB < 0 {
		errs = append(errs, errors.New("memory: negative"))
	}
	return errors.Join(append(errs, layout{c.Dir}.check())...)
}

// Check refuses what Run would refuse, and touches nothing.
func Check(cfg Config) error {
	if err := cfg.applyDefaults(); err != nil {
		return err
	}
	return cfg.Validate()
}

// lab is a running lab.
type lab struct {
	cfg    Config
	layout layout
	net    *underlay
}

// Run runs a lab until ctx ends.
//
// Preconditions: EnterNamespace has been called.
func Run(ctx context.Context, cfg Config) (err error) {
	if !inOwnNamespace() {
		return errors.New("lab: not in a network namespace of its own")
	}
	if err := cfg.applyDefaults(); err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	l := &lab{cfg: cfg, layout: layout{cfg.Dir}}
	for _, dir := range []string{cfg.Dir, l.layout.coordinator()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make lab directory: %w", err)
		}
	}
	lock, err := l.layout.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := l.endEarlier(); err != nil {
		return err
	}
	// From here on nothing outside the lab's directory stays, however the lab ends.
	defer func() { err = errors.Join(err, l.cleanUp()) }()
	if err := os.MkdirAll(l.layout.memory(), 0o700); err != nil {
		return fmt.Errorf("make directory of guests' memory: %w", err)
	}
	if err := l.prepare(ctx); err != nil {
		return err
	}
	if l.net, err = newUnderlay(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.net.Close()) }()
	defer l.certificates().keep(ctx)()

	return l.supervise(ctx)
}

// endEarlier ends what a killed lab left in this directory.
func (l *lab) endEarlier() error {
	dirs, err := filepath.Glob(l.layout.node("*"))
	if err != nil {
		return err
	}
	errs := []error{endEarlier(filepath.Join(l.layout.coordinator(), "coordinator.pid"), l.layout.coordinator())}
	for _, dir := range dirs {
		errs = append(errs, endEarlier(filepath.Join(dir, "agent.pid"), dir))
	}
	return errors.Join(errs...)
}

// cleanUp removes what lies outside the lab's directory.
func (l *lab) cleanUp() error {
	if err := os.RemoveAll(l.layout.memory()); err != nil {
		return fmt.Errorf("remove guests' memory: %w", err)
	}
	return nil
}

// prepare makes certificates and the repository where there are none.
func (l *lab) prepare(ctx context.Context) error {
	if err := l.certificates().make(); err != nil {
		return err
	}
	for i := range l.cfg.Nodes {
		if err := os.MkdirAll(l.layout.node(nodeName(i)), 0o700); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
	}
	key, err := l.repositoryKey()
	if err != nil {
		return err
	}
	repo := repository.Config{Dir: l.cfg.Repository, Key: key}
	_, err = repository.Create(ctx, repo)
	if errors.Is(err, repository.ErrExists) {
		// Opened only to tell here, rather than in a daemon's log, what is wrong with it.
		_, err = repository.Open(ctx, repo)
	}
	return coordinator.RepositoryFault(err)
}

func (l *lab) certificates() certificates {
	return certificates{dir: l.layout.certs(), nodes: l.cfg.Nodes, log: l.cfg.Logger}
}

// repositoryKey is the key in the lab's directory, which is drawn if it is wanted and
// not there. Nil: there is none.
func (l *lab) repositoryKey() (*seal.Key, error) {
	path := l.layout.repositoryKey()
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if !l.cfg.Encrypt {
			return nil, nil
		}
		key, err := seal.NewKey(nil)
		if err != nil {
			return nil, err
		}
		err = os.WriteFile(path, []byte(key.Text()), 0o600)
		return &key, err
	}
	key, err := seal.KeyFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "")
	}
	return &key, nil
}

// coordinatorSettings is what the lab writes into the coordinator's
// configuration file.
type coordinatorSettings struct {
	Listen      []string     `yaml:"listen"`
	Repository  string       `yaml:"repository"`
	KeyFile     string       `yaml:"repository_key_file,omitempty"`
	Certificate string       `yaml:"certificate"`
	Key         string       `yaml:"key"`
	CA          string       `yaml:"ca"`
	Etcd        etcdSettings `yaml:"etcd"`
}

type etcdSettings struct {
	Endpoints []string `yaml:"endpoints,omitempty"`
	Embedded  string   `yaml:"embedded,omitempty"`
}

func (l *lab) startCoordinator() (*process, error) {
	certs := filepath.Join(l.layout.certs(), "coordinator")
	s := coordinatorSettings{
		Repository: l.cfg.Repository, KeyFile: RepositoryKeyFile(l.cfg.Dir),
		Listen: []string{
			"unix:" + l.layout.socket(),
			net.JoinHostPort(hubAddress().String(), strconv.Itoa(portCoordinator)),
		},
		Certificate: certs + ".crt", Key: certs + ".key", CA: filepath.Join(l.layout.certs(), identity.CACertFile),
	}
	if len(l.cfg.Etcd) > 0 {
		s.Etcd.Endpoints = l.cfg.Etcd
	} else {
		s.Etcd.Embedded = l.layout.etcd()
	}
	dir := l.layout.coordinator()
	config := filepath.Join(dir, "coordinator.yaml")
	if err := writeSettings(config, s); err != nil {
		return nil, err
	}
	return start("coordinator", nil, l.cfg.Exe,
		[]string{"coordinator", "--config", config, "--log-level", l.cfg.LogLevel},
		filepath.Join(dir, "coordinator.log"), filepath.Join(dir, "coordinator.pid"))
}

// agentSettings is what the lab writes into an agent's configuration file.
type agentSettings struct {
	Name         string   `yaml:"name"`
	StateDir     string   `yaml:"state_dir"`
	MemoryDir    string   `yaml:"memory_dir"`
	Repository   string   `yaml:"repository"`
	KeyFile      string   `yaml:"repository_key_file,omitempty"`
	Listen       string   `yaml:"listen"`
	FabricListen string   `yaml:"fabric_listen"`
	Coordinators []string `yaml:"coordinators"`
	Certificate  string   `yaml:"certificate"`
	Key          string   `yaml:"key"`
	CA           string   `yaml:"ca"`
	MemoryMiB    int64    `yaml:"memory_mib"`
	CaptureMiB   int64    `yaml:"capture_mib"`

	Bridges map[string]string `yaml:"bridges,omitempty"`

	FabricPlaintext bool `yaml:"fabric_plaintext,omitempty"`

	AllowedPaths []string `yaml:"allowed_paths"`
}

func (l *lab) startAgent(name string, n nodeNet) (*process, error) {
	dir, certs := l.layout.node(name), filepath.Join(l.layout.certs(), name)
	address := func(ip net.IP, port int) string { return net.JoinHostPort(ip.String(), strconv.Itoa(port)) }
	config := filepath.Join(dir, "agent.yaml")
	bridges := map[string]string{}
	for _, b := range l.cfg.Bridges {
		bridges[b] = b
	}
	err := writeSettings(config, agentSettings{
		Name: name, StateDir: filepath.Join(dir, "state"), MemoryDir: filepath.Join(l.layout.memory(), name),
		Repository: l.cfg.Repository, KeyFile: RepositoryKeyFile(l.cfg.Dir), Listen: address(n.addr, portAgent), FabricListen: address(n.addr, portFabric),
		Coordinators: []string{address(hubAddress(), portCoordinator)},
		Certificate:  certs + ".crt", Key: certs + ".key", CA: filepath.Join(l.layout.certs(), identity.CACertFile),
		MemoryMiB: l.cfg.NodeMemoryMiB, CaptureMiB: l.cfg.NodeCaptureMiB, Bridges: bridges,
		FabricPlaintext: l.cfg.FabricPlaintext,
		// Whoever runs a lab is root here, and alone has its operator's certificate.
		AllowedPaths: []string{"/"},
	})
	if err != nil {
		return nil, err
	}
	return start("agent of "+name, &n.ns, l.cfg.Exe,
		[]string{"agent", "--config", config, "--destroy-on-exit", "--log-level", l.cfg.LogLevel},
		filepath.Join(dir, "agent.log"), filepath.Join(dir, "agent.pid"))
}

// supervise runs the coordinator and the agents, starts those anew that die, and ends
// all of them with ctx, the coordinator last. A coordinator that ends by itself, as it
// does when it cannot serve, is the end of the lab.
func (l *lab) supervise(ctx context.Context) (err error) {
	coordinator, err := l.startCoordinator()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	leading := make(chan error, 1)
	outlast, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer cancel()
		leading <- l.keepCoordinator(outlast, coordinator)
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-leading)
	}()
	defer cancel()
	ended := make(chan error, l.cfg.Nodes)
	running := 0
	var errs []error
	for i := range l.cfg.Nodes {
		n, err := l.net.addNode(i)
		for j := 0; err == nil && j < len(l.cfg.Bridges); j++ {
			err = l.net.addBridge(i, l.cfg.Nodes, j, l.cfg.Bridges[j])
		}
		if err != nil {
			errs = append(errs, err)
			cancel()
			break
		}
		running++
		go func() { ended <- l.keepAgent(ctx, nodeName(i), n) }()
	}
	if ctx.Err() == nil && l.cfg.Ready != nil {
		l.cfg.Ready(l.layout.socket())
	}
	<-ctx.Done()
	for range running {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// keepCoordinator runs the coordinator until ctx ends. One that is killed is started
// again, as systemd would.
func (l *lab) keepCoordinator(ctx context.Context, p *process) error {
	for {
		select {
		case <-ctx.Done():
			return p.stop()
		case <-p.done:
		}
		if !p.killed() {
			return fmt.Errorf("coordinator ended: %w (see %s)", p.err, filepath.Join(l.layout.coordinator(), "coordinator.log"))
		}
		l.cfg.Logger.Warn("coordinator was killed, starting it again", "reason", p.err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartDelay):
		}
		var err error
		if p, err = l.startCoordinator(); err != nil {
			return err
		}
	}
}

// keepAgent runs a node's agent until ctx ends. An agent that dies is started
// again, as systemd would; its guests meanwhile run on.
func (l *lab) keepAgent(ctx context.Context, name string, n nodeNet) error {
	for {
		p, err := l.startAgent(name, n)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return p.stop()
		case <-p.done:
			l.cfg.Logger.Warn("agent ended, starting it again", "node", name, "reason", p.err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartDelay):
		}
	}
}

func writeSettings(path string, settings any) error {
	b, err := yaml.Marshal(settings)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}
