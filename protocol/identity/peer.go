package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Role is what the holder of a certificate may do. The zero value is no role.
type Role string

// The roles.
const (
	RoleOperator    Role = "operator"    // a person or a script: commands the coordinator
	RoleCoordinator Role = "coordinator" // serves operators and agents, commands agents
	RoleAgent       Role = "agent"       // serves one node; its name is the node's
)

// valid tells whether r is one of the roles.
func (r Role) valid() bool {
	switch r {
	case RoleOperator, RoleCoordinator, RoleAgent:
		return true
	default:
		return false
	}
}

// isServer tells whether holders of the role accept connections.
func (r Role) isServer() bool { return r == RoleCoordinator || r == RoleAgent }

// domain is the DNS zone whose names stand for roles. It is reserved: no
// certificate is issued for a host in it.
const domain = "fermata"

// HostName is the DNS name in every server certificate of the role, for servers
// and clients that verify nothing but host names (etcd).
func (r Role) HostName() string { return string(r) + "." + domain }

// scheme of the URI that carries role and name.
const scheme = "fermata"

// Peer is whom a certificate speaks for.
type Peer struct {
	Role Role
	Name string // for an agent, the name of its node
}

// String is the peer as people read it: "agent n1".
func (p Peer) String() string {
	if p.Name == "" {
		return string(p.Role)
	}
	return string(p.Role) + " " + p.Name
}

func (p Peer) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: string(p.Role), Path: "/" + p.Name}
}

// nameForm is what a name may look like: it appears in host names, file names
// and keys, so nothing in it may need escaping.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// Validate reports every problem at once.
func (p Peer) Validate() error {
	var errs []error
	if !p.Role.valid() {
		errs = append(errs, fmt.Errorf("role %q: want %s, %s or %s", p.Role, RoleOperator, RoleCoordinator, RoleAgent))
	}
	if !nameForm.MatchString(p.Name) {
		errs = append(errs, fmt.Errorf("name %q: want 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit at both ends", p.Name))
	}
	return errors.Join(errs...)
}

// ErrPlaintext says that a connection is not encrypted, so nobody has proven
// who its peer is.
var ErrPlaintext = errors.New("connection carries no certificate")

// PeerOf tells a server who is at the other end of a connection. It reads
// nothing but certificates that the library verified in the handshake. A
// client knows whom it asked for; its own configuration has verified that.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) == 0 {
		return Peer{}, errors.New("peer showed no certificate that was verified")
	}
	return peerOfCertificate(cs.PeerCertificates[0])
}

func peerOfCertificate(cert *x509.Certificate) (Peer, error) {
	var p Peer
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		if p != (Peer{}) {
			return Peer{}, fmt.Errorf("certificate of %q names more than one identity", cert.Subject.CommonName)
		}
		p = Peer{Role: Role(u.Host), Name: strings.TrimPrefix(u.Path, "/")}
		if err := p.Validate(); err != nil {
			return Peer{}, fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
		}
	}
	if p == (Peer{}) {
		return Peer{}, fmt.Errorf("certificate of %q is not one of ours: no %s:// name in it", cert.Subject.CommonName, scheme)
	}
	return p, nil
}

// PeerFromContext tells who made the call that ctx belongs to. It returns
// ErrPlaintext for a call over an unencrypted connection.
func PeerFromContext(ctx context.Context) (Peer, error) {
	gp, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errors.New("context of no call")
	}
	info, ok := gp.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, ErrPlaintext
	}
	return PeerOf(info.State)
}
