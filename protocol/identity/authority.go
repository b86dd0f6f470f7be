package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of the authority's files in its directory.
const (
	CACertFile = "ca.crt" // public: every party gets a copy
	CAKeyFile  = "ca.key" // secret: only needed where certificates are issued
)

const (
	defaultCAValidity   = 10 * 365 * 24 * time.Hour
	defaultLeafValidity = 365 * 24 * time.Hour

	// backdate makes a fresh certificate valid on machines whose clock is
	// behind that of the issuer.
	backdate = 5 * time.Minute
)

// CreateCA makes an authority in dir, which is created when missing. validity
// zero means ten years. It never replaces an authority: every certificate in
// use would become worthless.
func CreateCA(dir string, validity time.Duration) error {
	return createCA(dir, validity, time.Now())
}

func createCA(dir string, validity time.Duration, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	certFile, keyFile := filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile)
	if err := refuseExisting(certFile, keyFile); err != nil {
		return fmt.Errorf("create authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("create authority key: %w", err)
	}
	template, err := authorityTemplate(validity, now)
	if err != nil {
		return fmt.Errorf("create authority in %s: %w", dir, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("sign authority certificate: %w", err)
	}
	return writePair(certFile, der, keyFile, key)
}

// authorityTemplate describes an authority's own certificate.
func authorityTemplate(validity time.Duration, now time.Time) (*x509.Certificate, error) {
	if validity < 0 {
		return nil, fmt.Errorf("negative validity %s", validity)
	}
	if validity == 0 {
		validity = defaultCAValidity
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		// The serial in the name tells two authorities apart in error messages
		// and keeps a verifier from trying the wrong one.
		Subject:               pkix.Name{Organization: []string{"Fermata"}, CommonName: fmt.Sprintf("fermata authority %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

// Request describes a certificate to issue.
type Request struct {
	Role Role
	Name string // of the person, the coordinator or the node
	// Hosts are further DNS names and IP addresses of a server, for clients
	// other than ours. Our own clients verify role and name.
	Hosts []string
	// Validity is one year when zero; it never reaches beyond the authority's.
	Validity time.Duration
	// Replace allows existing files to be overwritten, as in a renewal.
	Replace bool
}

// Validate reports every problem at once.
func (r Request) Validate() error {
	errs := []error{Peer{Role: r.Role, Name: r.Name}.Validate()}
	if len(r.Hosts) > 0 && !r.Role.isServer() {
		errs = append(errs, fmt.Errorf("hosts: a certificate of role %s is not for a server", r.Role))
	}
	for _, h := range r.Hosts {
		if err := checkHost(h); err != nil {
			errs = append(errs, err)
		}
	}
	if r.Validity < 0 {
		errs = append(errs, fmt.Errorf("validity: negative (%s)", r.Validity))
	}
	return errors.Join(errs...)
}

func checkHost(h string) error {
	if net.ParseIP(h) != nil {
		return nil
	}
	lower := strings.ToLower(strings.TrimSuffix(h, "."))
	switch {
	case lower == "" || strings.ContainsAny(lower, " :/@*"):
		return fmt.Errorf("host %q: neither a DNS name nor an IP address", h)
	case lower == domain || strings.HasSuffix(lower, "."+domain):
		return fmt.Errorf("host %q: names under %s stand for roles", h, domain)
	}
	return nil
}

// Issue makes a key and a certificate signed by the authority in caDir, as
// PREFIX.crt and PREFIX.key (mode 0600).
//
// On error: at most the key has been written; a key without its certificate is
// of no use and Replace overwrites it.
func Issue(caDir string, req Request, prefix string) (Files, error) {
	return issue(caDir, req, prefix, time.Now())
}

func issue(caDir string, req Request, prefix string, now time.Time) (Files, error) {
	who := Peer{Role: req.Role, Name: req.Name}
	if err := req.Validate(); err != nil {
		return Files{}, fmt.Errorf("issue certificate: %w", err)
	}
	files := Files{Cert: prefix + ".crt", Key: prefix + ".key", CA: filepath.Join(caDir, CACertFile)}
	if !req.Replace {
		if err := refuseExisting(files.Cert, files.Key); err != nil {
			return Files{}, fmt.Errorf("issue certificate for %s: %w", who, err)
		}
	}
	ca, caKey, err := loadCA(caDir)
	if err != nil {
		return Files{}, fmt.Errorf("issue certificate for %s: %w", who, err)
	}
	if now.After(ca.NotAfter) {
		return Files{}, fmt.Errorf("issue certificate for %s: %s", who, warning("authority "+files.CA, ca, now, renewAuthority))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, fmt.Errorf("create key for %s: %w", who, err)
	}
	template, err := leaf(req, now, ca.NotAfter)
	if err != nil {
		return Files{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return Files{}, fmt.Errorf("sign certificate for %s: %w", who, err)
	}
	if err := writePair(files.Cert, der, files.Key, key); err != nil {
		return Files{}, err
	}
	return files, nil
}

func leaf(req Request, now, limit time.Time) (*x509.Certificate, error) {
	who := Peer{Role: req.Role, Name: req.Name}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	validity := req.Validity
	if validity == 0 {
		validity = defaultLeafValidity
	}
	notAfter := now.Add(validity)
	if notAfter.After(limit) {
		notAfter = limit
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Fermata"}, CommonName: who.String()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		// Every role calls somebody: operators the coordinator, agents its
		// registry, the coordinator the agents and etcd.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{who.uri()},
	}
	if !req.Role.isServer() {
		return t, nil
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	t.DNSNames = []string{req.Role.HostName()}
	for _, h := range req.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		t.DNSNames = append(t.DNSNames, h)
	}
	return t, nil
}

func loadCA(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPEM, err := readPEM(filepath.Join(dir, CACertFile))
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := readPEM(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, nil, err
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, nil, fmt.Errorf("authority %s: not PEM", dir)
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("authority %s: %w", dir, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("authority %s: %w", dir, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fmt.Errorf("authority %s: key does not belong to the certificate", dir)
	}
	return cert, key, nil
}

// newSerial draws 127 bits: positive, unique without a register, at most the
// 20 octets of RFC 5280.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	// The first byte is 64 to 127, so that the number is positive and has its
	// full length.
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b[:]), nil
}
