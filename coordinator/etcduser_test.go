package coordinator_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator"
	"fermata/coordinator/etcdembed"
	"fermata/coordinator/etcdembed/etcdtest"
	"fermata/protocol/fault"
)

// written is a log that a test reads while it grows.
type written struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// withEtcd makes coordinator 0 over a real etcd.
func (l *lab) withEtcd(log *written, etcd coordinator.Etcd) *coordinator.Coordinator {
	l.t.Helper()
	etcd.LeaderTTL = 2 * time.Second
	c, err := coordinator.New(coordinator.Config{
		Listen: []string{l.address(0)}, Plaintext: true, Etcd: etcd, Repository: l.repoConfig(), ShutdownGrace: time.Second,
		Logger: hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug}),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// protect adds a user whose role covers the keys of the coordinator alone.
func protect(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx := t.Context()
	var errs []error
	did := func(_ any, err error) { errs = append(errs, err) }
	did(client.UserAdd(ctx, "root", "r"))
	did(client.UserGrantRole(ctx, "root", "root"))
	did(client.RoleAdd(ctx, "fermata"))
	did(client.RoleGrantPermission(ctx, "fermata", "/fermata/", clientv3.GetPrefixRangeEnd("/fermata/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	did(client.UserAdd(ctx, "fermata", "secret"))
	did(client.UserGrantRole(ctx, "fermata", "fermata"))
	did(client.AuthEnable(ctx))
	if err := errors.Join(errs...); err != nil && !strings.Contains(err.Error(), "role name already exists") {
		t.Fatal(err)
	}
}

func TestEtcd_UserAndPassword(t *testing.T) {
	l := newLab(t, "n1")
	p := etcdtest.StartProcess(t)
	admin := etcdtest.Dial(t, p.Endpoint)
	if _, err := admin.RoleAdd(t.Context(), "root"); err != nil {
		t.Fatal(err)
	}
	protect(t, admin)

	var log written
	etcd := coordinator.Etcd{Endpoints: []string{p.Endpoint}, Username: "fermata", Password: "wrong"}
	err := l.withEtcd(&log, etcd).Run(t.Context())
	wantFault(t, err, fault.Denied, p.Endpoint, "password")
	if strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %q shows the password", err)
	}

	etcd.Password = "secret"
	c := l.withEtcd(&log, etcd)
	stop := run(t, "coordinator", c.Run)
	l.await("coordinator listens", func() bool { return len(c.Addresses()) == 1 })
	cl := dial(t, l.address(0))
	cl.lab = l
	cl.awaitNodes()
	cl.running("web", "a")
	cl.mustCheckpoint("web")
	if strings.Contains(log.String(), "needs attention") {
		t.Errorf("maintenance fails with a role for the prefix:\n%s", log.String())
	}
	stop()

	// Without a user the log says what is missing.
	c = l.withEtcd(&log, coordinator.Etcd{Endpoints: []string{p.Endpoint}})
	run(t, "coordinator", c.Run)
	l.await("the log asks for a user", func() bool { return strings.Contains(log.String(), "etcd.username") })
}

// An etcd that does not answer is named in the log, and waited for.
func TestEtcd_AwayAtStart(t *testing.T) {
	for _, user := range []string{"", "fermata"} {
		t.Run("user="+user, func(t *testing.T) {
			l := newLab(t)
			p := etcdtest.StartProcess(t)
			p.Kill(t)
			var log written
			c := l.withEtcd(&log, coordinator.Etcd{Endpoints: []string{p.Endpoint}, Username: user, Password: user})
			stop := run(t, "coordinator", c.Run)
			l.await("the log names the endpoint", func() bool {
				return strings.Contains(log.String(), p.Endpoint+": connect: connection refused")
			})
			p.Restart(t)
			l.await("the coordinator leads", func() bool { return strings.Contains(log.String(), "this coordinator leads") })
			stop()
		})
	}
}

func TestConfig_EtcdEndpoints(t *testing.T) {
	for _, c := range []struct {
		etcd coordinator.Etcd
		want string // empty: accepted
	}{
		{coordinator.Etcd{Endpoints: []string{"http://127.0.0.1:2379", "127.0.0.1:2379", "https://etcd.example:2379", "unix:/run/etcd.sock"}}, ""},
		{coordinator.Etcd{Endpoints: []string{"https://fermata:secret@192.0.2.1:2379"}}, "https://192.0.2.1:2379: a user and a password in the address are not used; set username and password_file"},
		{coordinator.Etcd{Endpoints: []string{"fermata:secret@192.0.2.1:2379"}}, "username and password_file"},
		{coordinator.Etcd{Endpoints: []string{"https://192.0.2.1"}}, "the port is missing"},
		{coordinator.Etcd{Endpoints: []string{"https://192.0.2.1:2379/v2?x=1"}}, "want SCHEME://HOST:PORT"},
		{coordinator.Etcd{Endpoints: []string{"ftp://192.0.2.1:2379"}}, "ftp is none of"},
		{coordinator.Etcd{Endpoints: []string{"http://192.0.2.1:2379"}, Username: "u", Password: "p"}, "in clear"},
		{coordinator.Etcd{Endpoints: []string{"https://192.0.2.1:2379"}, Username: "u"}, "one is given without the other"},
		{coordinator.Etcd{Embedded: &etcdembed.Config{Dir: "/tmp/e"}, Username: "u", Password: "p"}, "no users"},
	} {
		cfg := coordinator.Config{Listen: []string{"127.0.0.1:0"}, Plaintext: true, Etcd: c.etcd}
		cfg.Repository.Dir = "/tmp/r"
		err := cfg.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%v: %v", c.etcd.Endpoints, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v: error %v, want %q", c.etcd.Endpoints, err, c.want)
		case err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("error %q shows the password", err)
		}
	}
}
