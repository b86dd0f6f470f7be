package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	// lookEvery bounds how often handshakes look at the files.
	lookEvery = time.Second

	// WarnBefore is how long before its expiry a certificate is warned of.
	WarnBefore = 30 * 24 * time.Hour
)

// stamp tells a file's content from a later one: inode, size and time of change of
// the three files. A renewal renames a new file into place.
type stamp [3]struct {
	inode   uint64
	size    int64
	changed time.Time
}

func stampOf(f Files) stamp {
	var s stamp
	for i, path := range []string{f.Cert, f.Key, f.CA} {
		fi, err := os.Stat(path)
		if err != nil {
			continue // a file that is missing differs from one that was there
		}
		s[i].size, s[i].changed = fi.Size(), fi.ModTime()
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			s[i].inode = st.Ino
		}
	}
	return s
}

// current returns what the files hold, or what they held last that is of use: while
// a renewal is half done the key is not that of the certificate.
func (i *Identity) current() *material {
	i.mu.Lock()
	defer i.mu.Unlock()
	if time.Since(i.looked) < lookEvery {
		return i.held
	}
	i.look()
	return i.held
}

// look reads the files again if they have changed.
//
// Preconditions: the caller holds mu.
func (i *Identity) look() {
	i.looked = time.Now()
	if stampOf(i.files) == i.held.stamp {
		i.problem = nil
		return
	}
	m, p, err := read(i.files, i.now())
	if err == nil && p != i.peer {
		err = fmt.Errorf("certificate %s is for %s now, and for %s before; restart to use it", i.files.Cert, p, i.peer)
	}
	if i.problem = err; err == nil {
		i.held = m
	}
}

// Status is how long an identity is of use.
type Status struct {
	NotAfter time.Time // of the certificate
	// Problem is why the files that are there now are not used; nil: they are.
	Problem error
	// Warnings say what expires within WarnBefore, or has, and what to do.
	Warnings []string
}

// Status looks at the files now.
func (i *Identity) Status() Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.look()
	leaf := i.held.cert.Leaf
	s := Status{NotAfter: leaf.NotAfter, Problem: i.problem}
	if i.problem != nil {
		s.Warnings = append(s.Warnings, fmt.Sprintf("changed certificate files are not used: %v", i.problem))
	}
	if w := warning(fmt.Sprintf("certificate %s of %s", i.files.Cert, i.peer), leaf, i.now(), renewLeaf(i.files)); w != "" {
		s.Warnings = append(s.Warnings, w)
	}
	if w := warning("authority "+i.files.CA, i.held.ca, i.now(), renewAuthority); w != "" {
		s.Warnings = append(s.Warnings, w)
	}
	return s
}

func warning(what string, cert *x509.Certificate, now time.Time, remedy string) string {
	left := cert.NotAfter.Sub(now)
	switch {
	case left > WarnBefore:
		return ""
	case left <= 0:
		return fmt.Sprintf("%s expired on %s; %s", what, date(cert.NotAfter), remedy)
	default:
		return fmt.Sprintf("%s expires on %s, in %d days; %s", what, date(cert.NotAfter), int(left.Hours()/24), remedy)
	}
}

// renewLeaf is the command that renews a certificate.
func renewLeaf(f Files) string {
	return fmt.Sprintf("renew it where the authority's key is: fermata certs renew --dir DIR %s", f.Cert)
}

const renewAuthority = "renew it where its key is, and copy ca.crt to every machine: fermata certs renew --dir DIR --authority"

func expired(f Files, p Peer, cert *x509.Certificate) error {
	return errors.New(warning(fmt.Sprintf("certificate %s of %s", f.Cert, p), cert, cert.NotAfter.Add(time.Second), renewLeaf(f)))
}

// unverified explains why the authority's file does not verify the certificate.
func unverified(f Files, caPEM []byte, now time.Time, err error) error {
	if ca, caErr := firstCertificate(caPEM); caErr == nil && now.After(ca.NotAfter) {
		return errors.New(warning("authority "+f.CA, ca, now, renewAuthority))
	}
	return fmt.Errorf("load certificate %s: verify against %s: %w", f.Cert, f.CA, err)
}

func firstCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in it")
	}
	return x509.ParseCertificate(block.Bytes)
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// Events are what Watch reports. Both must be set.
type Events struct {
	Warn    func(text string)
	Renewed func(notAfter time.Time)
}

const (
	watchEvery = time.Minute
	warnEvery  = 24 * time.Hour
)

// Watch looks at the files each minute until ctx ends: it reports a renewal when it
// sees one, and warnings at once and then daily.
func (i *Identity) Watch(ctx context.Context, events Events) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	w := watcher{id: i, events: events, notAfter: i.NotAfter()}
	for {
		w.look()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// watcher remembers what has been reported.
type watcher struct {
	id       *Identity
	events   Events
	notAfter time.Time // of the certificate that was seen last
	warned   time.Time // last
}

func (w *watcher) look() {
	s := w.id.Status()
	if !s.NotAfter.Equal(w.notAfter) {
		w.notAfter, w.warned = s.NotAfter, time.Time{}
		w.events.Renewed(s.NotAfter)
	}
	now := w.id.now()
	if now.Sub(w.warned) < warnEvery {
		return
	}
	for _, text := range s.Warnings {
		w.warned = now
		w.events.Warn(text)
	}
}
