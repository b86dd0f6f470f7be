// Package identity is the transport security of Fermata: a private
// certificate authority, certificates that carry a role and a name, and the
// checks both ends of every connection make.
//
// A certificate says who its holder is in one URI, fermata://ROLE/NAME, which
// is what every check reads. The common name repeats it for people, the DNS
// name ROLE.fermata lets a client verify a server whatever address it was
// dialled at, a unix socket included; see Client.
//
// Invariants:
//
//  1. Both ends of a TLS connection prove a chain to the same authority, over
//     TLS 1.3 or nothing.
//  2. A call reaches its handler only when a rule names its service and the
//     caller's role; a method without a rule is refused (Rules).
//  3. Plain text is possible only on addresses that PlaintextAllowed accepts.
//
// There is no revocation list: leaves are short-lived compared with the
// authority, and a compromised installation is given a new authority.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// Files names the PEM files of one identity.
type Files struct {
	Cert string // certificate
	Key  string // its private key
	CA   string // certificate of the authority that both ends trust
}

// Validate reports every file that is not named.
func (f Files) Validate() error {
	var errs []error
	if f.Cert == "" {
		errs = append(errs, errors.New("cert: missing"))
	}
	if f.Key == "" {
		errs = append(errs, errors.New("key: missing"))
	}
	if f.CA == "" {
		errs = append(errs, errors.New("ca: missing"))
	}
	return errors.Join(errs...)
}

// Identity is a certificate with its key, and the authority it trusts. It follows its
// files: a certificate that was renewed is shown from the next handshake on, without
// a restart. Connections that exist go on, whatever expires.
//
// Concurrency: safe for use by several goroutines.
type Identity struct {
	peer  Peer             // immutable; a renewed certificate must be for the same
	files Files            // immutable
	now   func() time.Time // immutable

	mu      sync.Mutex
	held    *material // guarded by mu; immutable itself, never nil
	looked  time.Time // guarded by mu; when the files were looked at
	problem error     // guarded by mu; why the files that are there now are not used; nil: they are
}

// material is what the files held at one time.
type material struct {
	stamp stamp
	cert  tls.Certificate
	ca    *x509.Certificate // of the authority that signed cert
	roots *x509.CertPool
}

// maxPEMBytes bounds what a file may make us read. A certificate of ours is
// under 2 KiB; a bundle of authorities during a change of authority is a few.
const maxPEMBytes = 256 << 10

// Load reads an identity and checks that it is usable now: that the key
// belongs to the certificate, that the authority signed it, and that neither
// has expired.
func Load(certFile, keyFile, caFile string) (*Identity, error) {
	files := Files{Cert: certFile, Key: keyFile, CA: caFile}
	if err := files.Validate(); err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	return load(files, time.Now)
}

func load(files Files, now func() time.Time) (*Identity, error) {
	m, p, err := read(files, now())
	if err != nil {
		return nil, err
	}
	return &Identity{peer: p, files: files, now: now, held: m, looked: time.Now()}, nil
}

// read reads the files and checks that they are of use at the time now.
func read(files Files, now time.Time) (*material, Peer, error) {
	m := &material{stamp: stampOf(files)} // before the content: a later change is seen
	certPEM, err := readPEM(files.Cert)
	if err != nil {
		return nil, Peer{}, err
	}
	keyPEM, err := readPEM(files.Key)
	if err != nil {
		return nil, Peer{}, err
	}
	caPEM, err := readPEM(files.CA)
	if err != nil {
		return nil, Peer{}, err
	}
	m.cert, err = tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, Peer{}, fmt.Errorf("load certificate %s with key %s: %w", files.Cert, files.Key, err)
	}
	m.roots = x509.NewCertPool()
	if !m.roots.AppendCertsFromPEM(caPEM) {
		return nil, Peer{}, fmt.Errorf("load authority %s: no certificate in it", files.CA)
	}
	p, err := peerOfCertificate(m.cert.Leaf)
	if err != nil {
		return nil, Peer{}, fmt.Errorf("load certificate %s: %w", files.Cert, err)
	}
	if now.After(m.cert.Leaf.NotAfter) {
		return nil, Peer{}, expired(files, p, m.cert.Leaf)
	}
	chains, err := m.cert.Leaf.Verify(x509.VerifyOptions{
		Roots:       m.roots,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, Peer{}, unverified(files, caPEM, now, err)
	}
	m.ca = chains[0][len(chains[0])-1]
	return m, p, nil
}

// Peer returns whom the certificate speaks for.
func (i *Identity) Peer() Peer { return i.peer }

// Files names the files the identity was loaded from, for servers that read
// them themselves (etcd).
func (i *Identity) Files() Files { return i.files }

// NotAfter is when the certificate expires.
func (i *Identity) NotAfter() time.Time { return i.current().cert.Leaf.NotAfter }

// Server is the configuration of a listener that accepts clients of the given
// roles, or of any role when none is given. A gRPC server accepts any role and
// lets Rules decide, so that a refused caller reads a reason and not an alert.
func (i *Identity) Server(accept ...Role) *tls.Config {
	accept = slices.Clone(accept)
	config := i.server(accept)
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return i.server(accept), nil }
	return config
}

// server is the configuration of one connection, with what the files hold now.
func (i *Identity) server(accept []Role) *tls.Config {
	m := i.current()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{m.cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    m.roots,
		Time:         i.now,
		// A resumed session would skip the verification of the client's chain.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			p, err := PeerOf(cs)
			if err != nil {
				return err
			}
			if len(accept) > 0 && !slices.Contains(accept, p.Role) {
				return fmt.Errorf("%s may not connect here: want role %v", p, accept)
			}
			return nil
		},
	}
}

// Client is the configuration of a connection to a server of role want and,
// when name is not empty, of exactly that name. The address dialled takes no
// part in the verification: certificates are issued to roles and names, and
// the same server may be reached over a unix socket, a tunnel or a new address.
func (i *Identity) Client(want Role, name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Always show our certificate: left to itself the library holds back one
		// that the server does not trust, and the server could not say why it
		// refused us. One that has expired says so here, where its file is known.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m := i.current()
			if i.now().After(m.cert.Leaf.NotAfter) {
				return nil, expired(i.files, i.peer, m.cert.Leaf)
			}
			return &m.cert, nil
		},
		ServerName: want.HostName(),
		Time:       i.now,
		// The library's own verification is replaced by all of it and more:
		// gRPC clients that know several addresses put the address dialled in
		// place of ServerName, and nobody has certificates for addresses.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return i.verifyServer(cs.PeerCertificates, Peer{Role: want, Name: name})
		},
	}
}

// verifyServer checks chain, validity, key usage and host name as the library
// does, and then who it is.
func (i *Identity) verifyServer(certs []*x509.Certificate, want Peer) error {
	if len(certs) == 0 {
		return errors.New("server showed no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range certs[1:] {
		intermediates.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{
		DNSName:       want.Role.HostName(),
		Roots:         i.current().roots,
		Intermediates: intermediates,
		CurrentTime:   i.now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		if i.now().After(certs[0].NotAfter) {
			err = fmt.Errorf("the certificate of the server (%s) expired on %s; renew it there: %w", certs[0].Subject.CommonName, date(certs[0].NotAfter), err)
		}
		return &tls.CertificateVerificationError{UnverifiedCertificates: certs, Err: err}
	}
	p, err := peerOfCertificate(certs[0])
	if err != nil {
		return err
	}
	if p.Role != want.Role || want.Name != "" && p.Name != want.Name {
		return fmt.Errorf("server is %s, want %s", p, want)
	}
	return nil
}

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	defer f.Close() // read only: nothing to lose
	data, err := io.ReadAll(io.LimitReader(f, maxPEMBytes+1))
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	if len(data) > maxPEMBytes {
		return nil, fmt.Errorf("load identity: %s is larger than %d bytes", path, maxPEMBytes)
	}
	return data, nil
}
