package identity

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// Rules says which role may call what: from a prefix of the full method name
// ("/fermata.v1.Node/") to the role. The longest prefix decides; a method that
// no prefix covers is refused.
type Rules map[string]Role

// ServiceRules are the rules of Fermata's own services.
func ServiceRules() Rules {
	return Rules{
		"/fermata.v1.Operator/": RoleOperator,
		"/fermata.v1.Registry/": RoleAgent,
		"/fermata.v1.Node/":     RoleCoordinator,
	}
}

// check decides one call. Its errors are of class denied and name the caller,
// the method and the role it takes.
func (r Rules) check(ctx context.Context, method string) error {
	p, err := PeerFromContext(ctx)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "call %s", method)
	}
	want, ok := r.roleFor(method)
	if !ok {
		return fault.New(fault.Denied, "%s may not call %s: nobody may", p, method)
	}
	if p.Role != want {
		return fault.New(fault.Denied, "%s may not call %s: it takes role %s", p, method, want)
	}
	return nil
}

func (r Rules) roleFor(method string) (Role, bool) {
	best, found := "", false
	for prefix := range r {
		if strings.HasPrefix(method, prefix) && (!found || len(prefix) > len(best)) {
			best, found = prefix, true
		}
	}
	return r[best], found
}

// Authorize makes the interceptors that enforce rules. A refused caller gets
// class denied, whether or not the server also has faultgrpc's interceptors.
// A server in plain-text
// mode goes without them: nobody there has proven a role.
func Authorize(rules Rules) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := rules.check(ctx, info.FullMethod); err != nil {
			return nil, faultgrpc.To(err)
		}
		return handler(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if err := rules.check(ss.Context(), info.FullMethod); err != nil {
			return faultgrpc.To(err)
		}
		return handler(srv, ss)
	}
	return unary, stream
}

// ServerOptions are the credentials and interceptors of a gRPC server that
// speaks for i and enforces rules.
func (i *Identity) ServerOptions(rules Rules) []grpc.ServerOption {
	unary, stream := Authorize(rules)
	return []grpc.ServerOption{
		grpc.Creds(lingerCredentials{credentials.NewTLS(i.Server())}),
		grpc.ChainUnaryInterceptor(unary),
		grpc.ChainStreamInterceptor(stream),
	}
}

// DialOption is the credential of a gRPC connection to a server of role want
// and, when name is not empty, of exactly that name.
func (i *Identity) DialOption(want Role, name string) grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(i.Client(want, name)))
}

// RequireName refuses a caller whose certificate does not carry name: an agent
// may register no node but its own. The error is of class denied. A call over
// plain text passes, since a server only listens in plain text where everybody
// is trusted.
func RequireName(ctx context.Context, name string) error {
	p, err := PeerFromContext(ctx)
	if errors.Is(err, ErrPlaintext) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Denied, err, "check name %s", name)
	}
	if p.Name != name {
		return fault.New(fault.Denied, "%s may not speak for %s", p, name)
	}
	return nil
}
