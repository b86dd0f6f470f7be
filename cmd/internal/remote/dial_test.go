package remote_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"fermata/cmd/internal/operatortest"
	"fermata/cmd/internal/remote"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listNodes dials and makes one call.
func listNodes(ctx context.Context, target remote.Target) error {
	conn, err := remote.Dial(ctx, target)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.ListNodes(ctx, &api.ListNodesRequest{})
	return target.Explain(err)
}

func TestDial_FindsTheLeader(t *testing.T) {
	follower, leader := operatortest.New(t), operatortest.New(t)
	follower.Fail = fault.New(fault.Unavailable, "not the leader")
	target := remote.Target{
		Addresses: []string{"127.0.0.1:1", follower.Address, leader.Address}, Plaintext: true,
	}
	if err := listNodes(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if len(follower.Requests()) == 0 || len(leader.Requests()) != 2 {
		t.Errorf("the follower was asked %d times, the leader %d times, want 1 and 2", len(follower.Requests()), len(leader.Requests()))
	}
}

func TestDial_WaitsForALeaderAndNamesEveryone(t *testing.T) {
	follower := operatortest.New(t)
	follower.Fail = fault.New(fault.Unavailable, "not the leader")
	ctx := &expiring{Context: t.Context(), done: make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		failed <- listNodes(ctx, remote.Target{Addresses: []string{"127.0.0.1:1", follower.Address}, Plaintext: true})
	}()
	// The third round begins when the second has been heard in full.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(follower.Requests()) < 3 {
		select {
		case <-tick.C:
		case err := <-failed:
			t.Fatalf("gave up after %d rounds: %v", len(follower.Requests()), err)
		}
	}
	close(ctx.done)
	err := <-failed
	if fault.ClassOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "not the leader") {
		t.Errorf("%v", err)
	}
}

// expiring is a context whose deadline passes when the test says so.
type expiring struct {
	context.Context
	done chan struct{}
}

func (e *expiring) Done() <-chan struct{} { return e.done }

func (e *expiring) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestDial_RefusalEndsTheSearch(t *testing.T) {
	refusing := operatortest.New(t)
	refusing.Fail = fault.New(fault.Denied, "no")
	err := listNodes(t.Context(), remote.Target{Addresses: []string{refusing.Address, "127.0.0.1:1"}, Plaintext: true})
	if fault.ClassOf(err) != fault.Denied || len(refusing.Requests()) != 1 {
		t.Errorf("%v after %d calls", err, len(refusing.Requests()))
	}
}

// installation makes an authority, a coordinator that serves with it over TCP
// and a unix socket, and returns the directory of certificates.
func installation(t *testing.T) (certs, tcp, unix string) {
	t.Helper()
	certs = t.TempDir()
	if err := identity.CreateCA(certs, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range []identity.Request{
		{Role: identity.RoleCoordinator, Name: "head1"},
		{Role: identity.RoleOperator, Name: "alice"},
		{Role: identity.RoleAgent, Name: "node1"},
	} {
		if _, err := identity.Issue(certs, r, filepath.Join(certs, string(r.Role))); err != nil {
			t.Fatal(err)
		}
	}
	id, err := identity.Load(filepath.Join(certs, "coordinator.crt"), filepath.Join(certs, "coordinator.key"), filepath.Join(certs, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	server := operatortest.New(t, id.ServerOptions(identity.ServiceRules())...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(t, listener, append([]grpc.ServerOption{}, id.ServerOptions(identity.ServiceRules())...)...)
	return certs, listener.Addr().String(), server.Address
}

func TestDial_WithCertificates(t *testing.T) {
	certs, tcp, unix := installation(t)
	files := func(role string) identity.Files {
		return identity.Files{
			Cert: filepath.Join(certs, role+".crt"), Key: filepath.Join(certs, role+".key"), CA: filepath.Join(certs, "ca.crt"),
		}
	}
	for _, addr := range []string{tcp, unix} {
		if err := listNodes(t.Context(), remote.Target{Addresses: []string{addr}, Files: files("operator")}); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := listNodes(t.Context(), remote.Target{Addresses: []string{tcp}, Files: files("agent")}); fault.ClassOf(err) != fault.Denied {
		t.Errorf("as an agent: %v, want class denied", err)
	}
	stranger, _, _ := installation(t)
	foreign := identity.Files{
		Cert: filepath.Join(stranger, "operator.crt"), Key: filepath.Join(stranger, "operator.key"), CA: filepath.Join(stranger, "ca.crt"),
	}
	plainServer := operatortest.New(t)
	absent := files("operator")
	absent.Cert = filepath.Join(certs, "nobody.crt")
	for _, c := range []struct {
		name   string
		target remote.Target
		class  fault.Class
		says   []string
	}{
		{"plain text to TLS", remote.Target{Addresses: []string{tcp}, Plaintext: true}, fault.Invalid, []string{tcp, "wants certificates", "--plaintext", "--lab"}},
		{"TLS to plain text", remote.Target{Addresses: []string{plainServer.Address}, Files: files("operator")}, fault.Invalid, []string{"without certificates", "--plaintext"}},
		{"another authority", remote.Target{Addresses: []string{tcp}, Files: foreign}, fault.Denied, []string{foreign.CA, "does not vouch", "--ca"}},
		{"no certificate", remote.Target{Addresses: []string{tcp}, Files: absent}, fault.Denied, []string{absent.Cert, "does not exist", "--cert", "certs issue"}},
		{"nobody there", remote.Target{Addresses: []string{"127.0.0.1:1"}, Plaintext: true}, fault.Unavailable, []string{"cannot reach the coordinator at 127.0.0.1:1", "connection refused", "--coordinator"}},
		{"one of two", remote.Target{Addresses: []string{"127.0.0.1:1", tcp}, Plaintext: true}, fault.Invalid, []string{"wants certificates"}},
	} {
		err := listNodes(t.Context(), c.target)
		if fault.ClassOf(err) != c.class {
			t.Errorf("%s: %v of class %v, want %v", c.name, err, fault.ClassOf(err), c.class)
		}
		for _, word := range c.says {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want %q in it", c.name, err, word)
			}
		}
	}
}
