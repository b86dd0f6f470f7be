package etcdembed_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"fermata/coordinator/etcdembed"
	"fermata/protocol/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// budget bounds every wait.
const budget = 20 * time.Second

func run(t *testing.T, cfg etcdembed.Config, serve func(context.Context, *clientv3.Client) error) error {
	t.Helper()
	s, err := etcdembed.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	return s.Run(ctx, serve)
}

func issue(t *testing.T, ca string, role identity.Role, name string) *identity.Identity {
	t.Helper()
	f, err := identity.Issue(ca, identity.Request{Role: role, Name: name}, filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(f.Cert, f.Key, f.CA)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func put(ctx context.Context, c *clientv3.Client) error {
	_, err := c.Put(ctx, "k", "v")
	return err
}

func get(t *testing.T) func(context.Context, *clientv3.Client) error {
	return func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, "k")
		if err == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "v") {
			t.Errorf("read %v, want v", resp.Kvs)
		}
		return err
	}
}

func TestRun_KeepsData(t *testing.T) {
	short, err := os.MkdirTemp("", "etcd") // t.TempDir takes much of a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	for _, c := range []struct{ dir, listen string }{
		{filepath.Join(t.TempDir(), "etcd"), ""},
		{filepath.Join(t.TempDir(), "etcd"), "127.0.0.1:0"},
		{filepath.Join(short, "100% odd#dir?x=%20"), ""},
	} {
		cfg := etcdembed.Config{Dir: c.dir, Listen: c.listen, UnsafeNoFsync: true}
		if err := run(t, cfg, put); err != nil {
			t.Fatal(err)
		}
		if err := run(t, cfg, get(t)); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o700 {
			t.Errorf("directory has mode %v, want 0700", st.Mode().Perm())
		}
	}
}

// An etcd that had used up its space takes writes again after a restart.
func TestRun_MakesRoom(t *testing.T) {
	cfg := etcdembed.Config{Dir: t.TempDir(), UnsafeNoFsync: true}
	fill := func(ctx context.Context, c *clientv3.Client) error {
		for range 3 { // revisions to compact
			if err := put(ctx, c); err != nil {
				return err
			}
		}
		members, err := c.MemberList(ctx)
		if err != nil {
			return err
		}
		alarm := etcdserverpb.AlarmRequest{
			Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: members.Members[0].ID, Alarm: etcdserverpb.AlarmType_NOSPACE,
		}
		if _, err := etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Alarm(ctx, &alarm); err != nil {
			return err
		}
		if err := put(ctx, c); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("write while the alarm is raised: %v, want ErrNoSpace", err)
		}
		return nil
	}
	if err := run(t, cfg, fill); err != nil {
		t.Fatal(err)
	}
	if err := run(t, cfg, put); err != nil {
		t.Errorf("write after a restart: %v", err)
	}
	if err := run(t, cfg, get(t)); err != nil {
		t.Error(err)
	}
}

func TestRun_ReturnsTheErrorOfServe(t *testing.T) {
	mine := errors.New("mine")
	err := run(t, etcdembed.Config{Dir: t.TempDir(), UnsafeNoFsync: true}, func(context.Context, *clientv3.Client) error { return mine })
	if !errors.Is(err, mine) {
		t.Errorf("got %v, want the error of serve", err)
	}
}

func TestRun_OnlyCoordinatorsConnect(t *testing.T) {
	ca := t.TempDir()
	if err := identity.CreateCA(ca, 0); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := identity.CreateCA(foreign, 0); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{"", "127.0.0.1:0"} {
		cfg := etcdembed.Config{Dir: t.TempDir(), Listen: listen, Identity: issue(t, ca, identity.RoleCoordinator, "c1"), UnsafeNoFsync: true}
		err := run(t, cfg, func(ctx context.Context, c *clientv3.Client) error {
			if err := put(ctx, c); err != nil {
				return err
			}
			for name, want := range map[*identity.Identity]bool{
				issue(t, ca, identity.RoleCoordinator, "c2"):      true,
				issue(t, ca, identity.RoleAgent, "n1"):            false,
				issue(t, ca, identity.RoleOperator, "alice"):      false,
				issue(t, foreign, identity.RoleCoordinator, "c1"): false,
			} {
				if got := canRead(ctx, t, c.Endpoints(), name); got != want {
					t.Errorf("%s at %s: admitted %v, want %v", name.Peer(), c.Endpoints(), got, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// canRead tells whether a client with id gets an answer.
func canRead(ctx context.Context, t *testing.T, endpoints []string, id *identity.Identity) bool {
	t.Helper()
	// A refused client tries again until its time is up.
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: id.Client(identity.RoleCoordinator, ""), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Get(ctx, "k")
	return err == nil
}

// TestRun_EndsQuickly has a foreign client watch and keep a lease alive, which
// would hold up a graceful end for seconds.
func TestRun_EndsQuickly(t *testing.T) {
	var began time.Time
	var other *clientv3.Client
	err := run(t, etcdembed.Config{Dir: t.TempDir(), UnsafeNoFsync: true}, func(ctx context.Context, c *clientv3.Client) error {
		var err error
		other, err = clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		watch := other.Watch(context.WithoutCancel(ctx), "k", clientv3.WithCreatedNotify())
		select {
		case <-watch:
		case <-ctx.Done():
			return ctx.Err()
		}
		began = time.Now()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("ending took %v", took)
	}
	if err := other.Close(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRun_OneProcessADirectory(t *testing.T) {
	cfg := etcdembed.Config{Dir: t.TempDir(), UnsafeNoFsync: true}
	err := run(t, cfg, func(context.Context, *clientv3.Client) error {
		second := cfg
		second.Listen = "127.0.0.1:0"
		return run(t, second, put)
	})
	if err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestRun_StaleSocketIsReplaced(t *testing.T) {
	cfg := etcdembed.Config{Dir: t.TempDir(), UnsafeNoFsync: true}
	sock := filepath.Join(cfg.Dir, "etcd.sock")
	if err := os.WriteFile(sock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t, cfg, put); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("got %v, want a refusal to remove a file", err)
	}
	if err := os.Remove(sock); err != nil {
		t.Fatal(err)
	}
	leaveSocket(t, sock)
	if err := run(t, cfg, put); err != nil {
		t.Error(err)
	}
}

func TestConfig_Validate(t *testing.T) {
	ca := t.TempDir()
	if err := identity.CreateCA(ca, 0); err != nil {
		t.Fatal(err)
	}
	agent := issue(t, ca, identity.RoleAgent, "n1")
	for _, c := range []struct {
		name string
		cfg  etcdembed.Config
		want []string
	}{
		{"empty", etcdembed.Config{}, []string{"dir: missing"}},
		{"plain text for all", etcdembed.Config{Dir: "/d", Listen: "0.0.0.0:1"}, []string{"plain text"}},
		{"host name", etcdembed.Config{Dir: "/d", Listen: "node1:1"}, []string{"neither unix:PATH nor IP:PORT", "plain text"}},
		{"agent", etcdembed.Config{Dir: "/d", Identity: agent}, []string{"agent n1, want role coordinator"}},
		{"long path", etcdembed.Config{Dir: "/" + strings.Repeat("d", 120)}, []string{"socket path"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.cfg.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}
