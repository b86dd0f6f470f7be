package identity

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// services answers the calls the tests make; Register checks the name.
type services struct {
	api.UnimplementedOperatorServer
	api.UnimplementedRegistryServer
	api.UnimplementedNodeServer
}

func (services) ListClusters(context.Context, *api.ListClustersRequest) (*api.ListClustersReply, error) {
	return &api.ListClustersReply{}, nil
}

func (services) Console(_ *api.ConsoleRequest, out grpc.ServerStreamingServer[api.ConsoleChunk]) error {
	return out.Send(&api.ConsoleChunk{})
}

func (services) Register(ctx context.Context, req *api.RegisterRequest) (*api.RegisterReply, error) {
	if err := RequireName(ctx, req.GetNode().GetName()); err != nil {
		return nil, faultgrpc.To(err)
	}
	return &api.RegisterReply{}, nil
}

func (services) Describe(context.Context, *api.DescribeRequest) (*api.NodeInfo, error) {
	return &api.NodeInfo{}, nil
}

// serve runs all three services for id (nil: plain text) until the test ends
// and returns the address.
func serve(t *testing.T, id *Identity, network, addr string) string {
	t.Helper()
	var opts []grpc.ServerOption
	if id != nil {
		opts = id.ServerOptions(ServiceRules())
	}
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(opts...)
	api.RegisterOperatorServer(s, services{})
	api.RegisterRegistryServer(s, services{})
	api.RegisterNodeServer(s, services{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	if network == "unix" {
		return "unix:" + lis.Addr().String()
	}
	return lis.Addr().String()
}

func dial(t *testing.T, addr string, cred grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, cred)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return conn
}

// callTimeout ends a call that a broken check would leave hanging.
const callTimeout = 10 * time.Second

func callContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	t.Cleanup(cancel)
	return ctx
}

func listClusters(t *testing.T, conn *grpc.ClientConn) error {
	_, err := api.NewOperatorClient(conn).ListClusters(callContext(t), &api.ListClustersRequest{})
	return err
}

func console(t *testing.T, conn *grpc.ClientConn) error {
	s, err := api.NewOperatorClient(conn).Console(callContext(t), &api.ConsoleRequest{})
	if err != nil {
		return err
	}
	_, err = s.Recv()
	return err
}

func register(t *testing.T, conn *grpc.ClientConn, name string) error {
	_, err := api.NewRegistryClient(conn).Register(callContext(t), &api.RegisterRequest{Node: &api.NodeInfo{Name: name}})
	return err
}

func describe(t *testing.T, conn *grpc.ClientConn) error {
	_, err := api.NewNodeClient(conn).Describe(callContext(t), &api.DescribeRequest{})
	return err
}

func wantDenied(t *testing.T, err error, parts ...string) {
	t.Helper()
	if got := fault.ClassOf(faultgrpc.From(err)); got != fault.Denied {
		t.Errorf("class %v, want %v", got, fault.Denied)
	}
	wantError(t, err, parts...)
}

func TestAuthorize_EachRoleCallsItsServiceAlone(t *testing.T) {
	ca := authority(t)
	addr := serve(t, issued(t, ca, RoleCoordinator, "c1"), "tcp", "127.0.0.1:0")
	connAs := func(role Role, name string) *grpc.ClientConn {
		return dial(t, addr, issued(t, ca, role, name).DialOption(RoleCoordinator, ""))
	}
	operator, agent, coordinator := connAs(RoleOperator, "alice"), connAs(RoleAgent, "n1"), connAs(RoleCoordinator, "c2")

	for _, err := range []error{listClusters(t, operator), console(t, operator), register(t, agent, "n1"), describe(t, coordinator)} {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
	}
	wantDenied(t, register(t, operator, "alice"), "operator alice may not call /fermata.v1.Registry/Register: it takes role agent")
	wantDenied(t, describe(t, operator), "operator alice may not call /fermata.v1.Node/Describe: it takes role coordinator")
	wantDenied(t, listClusters(t, agent), "agent n1 may not call /fermata.v1.Operator/ListClusters: it takes role operator")
	wantDenied(t, console(t, agent), "agent n1 may not call /fermata.v1.Operator/Console")
	wantDenied(t, describe(t, agent), "agent n1 may not call")
	wantDenied(t, listClusters(t, coordinator), "coordinator c2 may not call")
	wantDenied(t, register(t, agent, "n2"), "agent n1 may not speak for n2")
}

func TestClient_VerifiesRoleAndNameNotAddress(t *testing.T) {
	ca := authority(t)
	sock := serve(t, issued(t, ca, RoleAgent, "n1"), "unix", filepath.Join(t.TempDir(), "s"))
	me := issued(t, ca, RoleCoordinator, "c1")
	if err := describe(t, dial(t, sock, me.DialOption(RoleAgent, "n1"))); err != nil {
		t.Errorf("over a unix socket: %v", err)
	}
	if err := describe(t, dial(t, sock, me.DialOption(RoleAgent, ""))); err != nil {
		t.Errorf("any agent: %v", err)
	}
	wantError(t, describe(t, dial(t, sock, me.DialOption(RoleAgent, "n2"))), "server is agent n1, want agent n2")
	wantError(t, describe(t, dial(t, sock, me.DialOption(RoleCoordinator, ""))), "certificate is valid for agent.fermata, not coordinator.fermata")
}

// TestServer_RefusesOperatorCertificate checks that a certificate without the
// server key usage cannot impersonate a server.
func TestServer_RefusesOperatorCertificate(t *testing.T) {
	ca := authority(t)
	addr := serve(t, issued(t, ca, RoleOperator, "alice"), "tcp", "127.0.0.1:0")
	err := describe(t, dial(t, addr, issued(t, ca, RoleCoordinator, "c1").DialOption(RoleOperator, "")))
	wantError(t, err, "tls: failed to verify certificate")
}

// TestClient_ServerNameMayBeReplaced stands for gRPC clients with several
// addresses, such as etcd's, which put the address in place of ServerName.
func TestClient_ServerNameMayBeReplaced(t *testing.T) {
	ca := authority(t)
	addr := serve(t, issued(t, ca, RoleCoordinator, "c1"), "tcp", "127.0.0.1:0")
	for role, want := range map[Role]bool{RoleCoordinator: true, RoleAgent: false} {
		cfg := issued(t, ca, RoleOperator, "alice").Client(role, "")
		cfg.ServerName = "127.0.0.1"
		err := listClusters(t, dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg))))
		if (err == nil) != want {
			t.Errorf("as %s: %v, want accepted %v", role, err, want)
		}
	}
	stranger := issued(t, authority(t), RoleOperator, "alice").Client(RoleCoordinator, "")
	stranger.ServerName = "127.0.0.1"
	err := listClusters(t, dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(stranger))))
	wantError(t, err, "certificate signed by unknown authority")
}

func TestHandshake_WrongAuthorityRefused(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	addr := serve(t, issued(t, ours, RoleCoordinator, "c1"), "tcp", "127.0.0.1:0")

	stranger := issued(t, theirs, RoleOperator, "mallory")
	wantError(t, listClusters(t, dial(t, addr, stranger.DialOption(RoleCoordinator, ""))), "certificate signed by unknown authority")

	// A client that trusts the server but whose own certificate is foreign.
	stranger.held.roots = issued(t, ours, RoleOperator, "x").held.roots
	wantError(t, listClusters(t, dial(t, addr, stranger.DialOption(RoleCoordinator, ""))), "tls: unknown certificate authority")
}

func TestHandshake_ExpiredRefused(t *testing.T) {
	ca := t.TempDir()
	past := time.Now().Add(-3 * time.Hour)
	if err := createCA(ca, 0, past); err != nil {
		t.Fatal(err)
	}
	fresh := serve(t, issued(t, ca, RoleCoordinator, "c1"), "tcp", "127.0.0.1:0")
	stale := serve(t, issuedAt(t, ca, RoleCoordinator, "c0", past), "tcp", "127.0.0.1:0")

	wantError(t, listClusters(t, dial(t, fresh, issuedAt(t, ca, RoleOperator, "bob", past).DialOption(RoleCoordinator, ""))), "expired on", ".crt of operator bob", "fermata certs renew")
	wantError(t, listClusters(t, dial(t, stale, issued(t, ca, RoleOperator, "alice").DialOption(RoleCoordinator, ""))), "coordinator c0", "expired on")
}

func TestHandshake_PlaintextRefusedByTLS(t *testing.T) {
	ca := authority(t)
	addr := serve(t, issued(t, ca, RoleCoordinator, "c1"), "tcp", "127.0.0.1:0")
	if err := listClusters(t, dial(t, addr, grpc.WithTransportCredentials(insecure.NewCredentials()))); err == nil {
		t.Error("plain-text call was answered")
	}
}

// TestAuthorize_PlaintextServer checks both ways to serve plain text: with the
// rules nobody gets in, without them everybody does and RequireName passes.
func TestAuthorize_PlaintextServer(t *testing.T) {
	addr := serve(t, nil, "tcp", "127.0.0.1:0")
	conn := dial(t, addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err := register(t, conn, "n1"); err != nil {
		t.Error(err)
	}
	unary, _ := Authorize(ServiceRules())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(unary))
	api.RegisterOperatorServer(s, services{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	defer func() {
		s.Stop()
		<-done
	}()
	err = listClusters(t, dial(t, lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	wantDenied(t, err, "connection carries no certificate")
}

// TestServer_AcceptRefusesOtherRoles covers listeners that are not gRPC.
func TestServer_AcceptRefusesOtherRoles(t *testing.T) {
	ca := authority(t)
	cfg := issued(t, ca, RoleCoordinator, "c1").Server(RoleAgent)
	for role, want := range map[Role]bool{RoleAgent: true, RoleOperator: false} {
		got := handshake(t, cfg, issued(t, ca, role, "x").Client(RoleCoordinator, "c1"))
		if (got == nil) != want {
			t.Errorf("%s: %v, want accepted %v", role, got, want)
		}
		if got != nil {
			wantError(t, got, "operator x may not connect here")
		}
	}
}
