package identity

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Certificate is what a certificate file says.
type Certificate struct {
	Path      string
	Authority bool // of an authority; Peer is empty then
	Peer      Peer
	NotAfter  time.Time

	cert *x509.Certificate
}

// ReadCertificate reads one certificate file of ours, valid or not.
func ReadCertificate(path string) (Certificate, error) {
	data, err := readPEM(path)
	if err != nil {
		return Certificate{}, err
	}
	cert, err := firstCertificate(data)
	if err != nil {
		return Certificate{}, fmt.Errorf("certificate %s: %w", path, err)
	}
	c := Certificate{Path: path, Authority: cert.IsCA, NotAfter: cert.NotAfter, cert: cert}
	if !c.Authority {
		if c.Peer, err = peerOfCertificate(cert); err != nil {
			return Certificate{}, fmt.Errorf("certificate %s: %w", path, err)
		}
	}
	return c, nil
}

// Due reports whether the certificate expires within WarnBefore, or has.
func (c Certificate) Due(now time.Time) bool { return c.NotAfter.Sub(now) <= WarnBefore }

// Warning says when a certificate that is due expires and what to do; it is empty for
// any other.
func (c Certificate) Warning(now time.Time) string {
	if c.Authority {
		return warning("authority "+c.Path, c.cert, now, renewAuthority)
	}
	return warning(fmt.Sprintf("certificate %s of %s", c.Path, c.Peer), c.cert, now, renewLeaf(Files{Cert: c.Path}))
}

// Renew replaces the certificate PREFIX.crt and its key PREFIX.key by new ones for the
// same holder and hosts. validity zero means that of the old one. Daemons that use
// the files follow by themselves.
func Renew(caDir, certFile string, validity time.Duration) (Files, error) {
	return renew(caDir, certFile, validity, time.Now())
}

func renew(caDir, certFile string, validity time.Duration, now time.Time) (Files, error) {
	old, err := ReadCertificate(certFile)
	if err != nil {
		return Files{}, err
	}
	prefix, isCert := strings.CutSuffix(certFile, ".crt")
	switch {
	case old.Authority:
		return Files{}, fmt.Errorf("renew %s: it is an authority's; use certs renew --authority", certFile)
	case !isCert:
		return Files{}, fmt.Errorf("renew %s: want a file NAME.crt with its key in NAME.key", certFile)
	}
	ca, _, err := loadCA(caDir)
	if err != nil {
		return Files{}, fmt.Errorf("renew %s: %w", certFile, err)
	}
	if err := old.cert.CheckSignatureFrom(ca); err != nil {
		return Files{}, fmt.Errorf("renew %s: it is not of the authority in %s: %w", certFile, caDir, err)
	}
	if validity == 0 {
		validity = old.cert.NotAfter.Sub(old.cert.NotBefore) - backdate
	}
	return issue(caDir, Request{Role: old.Peer.Role, Name: old.Peer.Name, Hosts: hostsOf(old.cert), Validity: validity, Replace: true}, prefix, now)
}

// hostsOf returns what Request.Hosts was.
func hostsOf(cert *x509.Certificate) []string {
	var hosts []string
	for _, name := range cert.DNSNames {
		if !strings.HasSuffix(name, "."+domain) {
			hosts = append(hosts, name)
		}
	}
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// RenewAuthority makes a new certificate for the authority in dir, with the same key
// and name: every certificate that it has signed stays as it is, and is verified by
// the old file and by the new one. validity zero means ten years.
func RenewAuthority(dir string, validity time.Duration) error {
	return renewAuthorityAt(dir, validity, time.Now())
}

func renewAuthorityAt(dir string, validity time.Duration, now time.Time) error {
	old, key, err := loadCA(dir)
	if err != nil {
		return fmt.Errorf("renew authority: %w", err)
	}
	template, err := authorityTemplate(validity, now)
	if err != nil {
		return fmt.Errorf("renew authority %s: %w", dir, err)
	}
	template.Subject, template.RawSubject, template.SubjectKeyId = pkix.Name{}, old.RawSubject, old.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("renew authority %s: %w", dir, err)
	}
	return writeCertificate(filepath.Join(dir, CACertFile), der)
}

// CertificatesIn lists the certificate files of ours in dir, the authority's first;
// other files are left out.
func CertificatesIn(dir string) ([]Certificate, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*.crt"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
	}
	var found []Certificate
	var errs []error
	for _, path := range paths {
		c, err := ReadCertificate(path)
		switch {
		case err != nil:
			errs = append(errs, err)
		case c.Authority:
			found = append([]Certificate{c}, found...)
		default:
			found = append(found, c)
		}
	}
	if len(found) == 0 {
		return nil, errors.Join(errs...)
	}
	return found, nil
}

// escapeGlob has filepath.Glob take a name as it is.
func escapeGlob(name string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(name)
}
