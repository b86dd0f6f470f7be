package seal

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Key is what a user keeps to open repositories with.
type Key struct{ secret [secretBytes]byte }

// keyWord begins the text of a key.
const keyWord = "fermata-key-1"

// maxKeyText bounds what is read in search of a key.
const maxKeyText = 4096

// NewKey draws a key from random; nil is crypto/rand.
func NewKey(random io.Reader) (Key, error) {
	var k Key
	if err := draw(random, k.secret[:]); err != nil {
		return Key{}, fmt.Errorf("draw key: %w", err)
	}
	return k, nil
}

// ParseKey reads the text of a key: a line of the word fermata-key-1 and 64
// hexadecimal digits. Empty lines and those that begin with # are passed over.
//
// On error: no part of the text is in it.
func ParseKey(text []byte) (Key, error) {
	var k Key
	found := false
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if found || len(words) != 2 || words[0] != keyWord || len(words[1]) != 2*secretBytes {
			return Key{}, fmt.Errorf("not a key: want one line of %s and %d hexadecimal digits", keyWord, 2*secretBytes)
		}
		if _, err := hex.Decode(k.secret[:], []byte(words[1])); err != nil {
			return Key{}, errors.New("not a key: a digit is not hexadecimal")
		}
		found = true
	}
	if !found {
		return Key{}, errors.New("not a key: empty")
	}
	return k, nil
}

// Text is what ParseKey reads. It is the secret itself.
func (k Key) Text() string { return keyWord + " " + hex.EncodeToString(k.secret[:]) + "\n" }

// ID names the key, and tells nothing of it: 16 hexadecimal digits.
func (k Key) ID() string {
	id, err := hkdf.Expand(sha256.New, k.secret[:], "fermata key id", 8)
	if err != nil {
		panic(err) // of lengths, which are right
	}
	return hex.EncodeToString(id)
}

// String names the key: a secret must not get into a log by being printed.
func (k Key) String() string { return "key " + k.ID() }

// GoString is String.
func (k Key) GoString() string { return k.String() }

// KeyFile reads a key from a file, which nobody but its owner may read.
func KeyFile(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return Key{}, fmt.Errorf("key file: %w", err)
	}
	defer f.Close() // opened for reading: nothing can be lost
	info, err := f.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("key file: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("key file %s: mode %04o lets others read it; chmod 600", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyText))
	if err != nil {
		return Key{}, fmt.Errorf("key file: %w", err)
	}
	k, err := ParseKey(text)
	if err != nil {
		return Key{}, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

// commandGrace is how long what a key command has started may keep its output open.
const commandGrace = 5 * time.Second

// KeyCommand runs a command, its words separated by blanks, that prints a key. What it writes
// to its standard error is in the error if it fails.
func KeyCommand(ctx context.Context, command string) (Key, error) {
	words := strings.Fields(command)
	if len(words) == 0 {
		return Key{}, errors.New("key command: empty")
	}
	var out, complaint limited
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	cmd.WaitDelay = commandGrace
	if err := cmd.Run(); err != nil {
		return Key{}, fmt.Errorf("key command %s: %w: %.200q", words[0], err, bytes.TrimSpace(complaint))
	}
	k, err := ParseKey(out)
	if err != nil {
		return Key{}, fmt.Errorf("key command %s: %w", words[0], err)
	}
	return k, nil
}

// limited keeps the beginning of what is written to it.
type limited []byte

func (l *limited) Write(p []byte) (int, error) {
	*l = append(*l, p[:min(len(p), maxKeyText-len(*l))]...)
	return len(p), nil
}

// Wrap seals a domain's secret so that this key opens it, for the owner of that
// name only.
func (k Key) Wrap(d *Domain, owner string) ([]byte, error) {
	return (&Domain{secret: k.secret}).Seal(nil, d.secret[:], wrapContext(owner))
}

// Unwrap opens what Wrap made.
//
// On error: ErrNotAuthentic.
func (k Key) Unwrap(wrapped []byte, owner string) (*Domain, error) {
	secret, err := (&Domain{secret: k.secret}).Open(bytes.Clone(wrapped), wrapContext(owner))
	if err != nil {
		return nil, err
	}
	if len(secret) != secretBytes {
		return nil, fmt.Errorf("data key of %d bytes: %w", len(secret), ErrNotAuthentic)
	}
	return &Domain{secret: [secretBytes]byte(secret)}, nil
}

func wrapContext(owner string) string { return "data key of " + owner }
