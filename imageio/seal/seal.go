// Package seal encrypts what a repository stores, if it was made with a key.
//
// Two kinds of keys are told apart. A Key is what people keep: a file, or what a
// command prints. It encrypts nothing but Domains. A Domain is the secret under
// which everything in one repository is encrypted, and so within which equal pages
// are stored once; it is random, and lies in the repository wrapped by one Key or
// several. So a Key can be changed without touching what is stored.
//
// A sealed message is
//
//	0        24           24+n       24+n+16
//	+--------+------------+----------+
//	| salt   | ciphertext | tag      |
//	| 24 B   | n bytes    | 16 B     |
//	+--------+------------+----------+
//
// AES-256-GCM (NIST SP 800-38D) with a key and nonce of its own, which HKDF-SHA256
// (RFC 5869) expands from the domain's secret and the random salt. So no number of
// messages wears a key out (a random nonce of 96 bits would after 2^32), and no
// writer needs to know what others have written. The context, which is
// authenticated and not stored, says what a message is: one that was put elsewhere
// does not open.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

const (
	// SaltBytes precede the ciphertext.
	SaltBytes = 24
	tagBytes  = 16
	// Overhead is what sealing adds to a message.
	Overhead = SaltBytes + tagBytes

	secretBytes = 32 // of Keys and Domains: AES-256
	nonceBytes  = 12
)

// ErrNotAuthentic says that a message was not sealed in this domain for this
// context, or was changed since.
var ErrNotAuthentic = errors.New("not authentic: changed, put in another's place, or of another key")

// Domain encrypts and decrypts what one repository holds.
//
// Concurrency: safe for use by several goroutines.
type Domain struct{ secret [secretBytes]byte }

// NewDomain draws a secret.
func NewDomain() (*Domain, error) {
	d := new(Domain)
	if err := draw(nil, d.secret[:]); err != nil {
		return nil, fmt.Errorf("draw data key: %w", err)
	}
	return d, nil
}

// draw fills b from random; nil is crypto/rand.
func draw(random io.Reader, b []byte) error {
	if random == nil {
		random = rand.Reader
	}
	_, err := io.ReadFull(random, b)
	return err
}

// Seal encrypts plain and returns the message, in buf if that has room for it.
// plain may lie at buf[SaltBytes:]; any other overlap is an error of the caller.
func (d *Domain) Seal(buf, plain []byte, context string) ([]byte, error) {
	if n := len(plain) + Overhead; cap(buf) < n {
		buf = make([]byte, n)
	}
	salt := buf[:SaltBytes]
	if err := draw(nil, salt); err != nil {
		return nil, fmt.Errorf("draw salt: %w", err)
	}
	aead, nonce, err := d.cipherFor(salt)
	if err != nil {
		return nil, err
	}
	return aead.Seal(salt, nonce, plain, []byte(context)), nil
}

// Open decrypts a message in its own place.
//
// On error: ErrNotAuthentic; the message is spoiled.
func (d *Domain) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, fmt.Errorf("%d bytes are too short: %w", len(sealed), ErrNotAuthentic)
	}
	aead, nonce, err := d.cipherFor(sealed[:SaltBytes])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(sealed[SaltBytes:SaltBytes], nonce, sealed[SaltBytes:], []byte(context))
	if err != nil {
		return nil, ErrNotAuthentic
	}
	return plain, nil
}

// cipherFor is the cipher of the one message with this salt.
func (d *Domain) cipherFor(salt []byte) (cipher.AEAD, []byte, error) {
	okm, err := hkdf.Expand(sha256.New, d.secret[:], "fermata message "+string(salt), secretBytes+nonceBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(okm[:secretBytes])
	if err != nil {
		return nil, nil, fmt.Errorf("set up cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	return aead, okm[secretBytes:], err
}
