package seal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newDomain(t testing.TB) *Domain {
	t.Helper()
	d, err := NewDomain()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustSeal(t testing.TB, d *Domain, buf, plain []byte, context string) []byte {
	t.Helper()
	sealed, err := d.Seal(buf, plain, context)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestDomain_OpensWhatItSealed(t *testing.T) {
	d := newDomain(t)
	for _, n := range []int{0, 1, 4096, 1 << 20} {
		plain := bytes.Repeat([]byte{7}, n)
		room := make([]byte, n+Overhead)
		inPlace := room[SaltBytes:][:n]
		copy(inPlace, plain)
		for what, sealed := range map[string][]byte{
			"new":          mustSeal(t, d, nil, plain, "here"),
			"in a buffer":  mustSeal(t, d, make([]byte, n+Overhead), plain, "here"),
			"in its place": mustSeal(t, d, room, inPlace, "here"),
		} {
			if len(sealed) != n+Overhead || n > 16 && bytes.Contains(sealed, plain[:16]) {
				t.Errorf("%s: %d bytes sealed to %d", what, n, len(sealed))
			}
			if got, err := d.Open(bytes.Clone(sealed), "here"); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s: %d bytes, %v", what, len(got), err)
			}
		}
	}
}

func TestDomain_RefusesAllElse(t *testing.T) {
	d := newDomain(t)
	sealed := mustSeal(t, d, nil, []byte("some bytes"), "here")
	if again := mustSeal(t, d, nil, []byte("some bytes"), "here"); bytes.Equal(sealed, again) {
		t.Error("equal messages look equal")
	}
	refused := func(what string, d *Domain, message []byte, context string) {
		t.Helper()
		if got, err := d.Open(bytes.Clone(message), context); !errors.Is(err, ErrNotAuthentic) || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	refused("another context", d, sealed, "there")
	refused("another domain", newDomain(t), sealed, "here")
	for i := range sealed {
		flipped := bytes.Clone(sealed)
		flipped[i] ^= 0x10
		refused(fmt.Sprintf("byte %d changed", i), d, flipped, "here")
		refused(fmt.Sprintf("cut off at %d", i), d, sealed[:i], "here")
	}
}

func newKey(t testing.TB) Key {
	t.Helper()
	k, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKey_Wrap(t *testing.T) {
	d, k := newDomain(t), newKey(t)
	wrapped, err := k.Wrap(d, "a repository")
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.Unwrap(wrapped, "a repository")
	if err != nil || *got != *d {
		t.Fatalf("another data key, %v", err)
	}
	if _, err := k.Unwrap(wrapped, "another"); !errors.Is(err, ErrNotAuthentic) {
		t.Errorf("for another owner: %v", err)
	}
	if _, err := newKey(t).Unwrap(wrapped, "a repository"); !errors.Is(err, ErrNotAuthentic) {
		t.Errorf("with another key: %v", err)
	}
}

func TestKey_IsNotPrinted(t *testing.T) {
	k := newKey(t)
	secret := strings.Fields(k.Text())[1]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, struct{ Key Key }{k}); strings.Contains(out, secret[:8]) || strings.Contains(out, fmt.Sprint(k.secret[:4])) {
			t.Errorf("%s prints %q", verb, out)
		}
	}
	if strings.Contains(secret, k.ID()) || k.ID() == newKey(t).ID() || len(k.ID()) != 16 {
		t.Errorf("id %q", k.ID())
	}
}

func TestParseKey(t *testing.T) {
	k := newKey(t)
	digits := strings.Fields(k.Text())[1]
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{k.Text(), true},
		{"# of the archive\n\n  " + k.Text(), true},
		{strings.TrimSpace(k.Text()), true},
		{"", false},
		{"# nothing\n", false},
		{digits, false},
		{"fermata-key-2 " + digits, false},
		{"fermata-key-1 " + digits[1:], false},
		{"fermata-key-1 g" + digits[1:], false},
		{k.Text() + k.Text(), false},
	} {
		got, err := ParseKey([]byte(c.text))
		if (err == nil) != c.ok || c.ok && got != k {
			t.Errorf("%q: %v", c.text, err)
		}
		if err != nil && strings.Contains(err.Error(), digits[1:9]) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	k := newKey(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(k.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := KeyFile(path); err != nil || got != k {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := KeyFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by a group: %v", err)
	}
	if _, err := KeyFile(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestKeyCommand(t *testing.T) {
	k := newKey(t)
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(k.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := KeyCommand(t.Context(), " cat  "+path); err != nil || got != k {
		t.Fatal(err)
	}
	for command, says := range map[string]string{
		"":                            "empty",
		"cat " + path + "none":        "No such file",
		"/no/such/command":            "no such file",
		"true":                        "not a key",
		"head -c 100000000 /dev/zero": "not a key", // and is not kept
	} {
		if _, err := KeyCommand(t.Context(), command); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", command, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("fermata-key-1 " + strings.Repeat("0a", secretBytes)))
	f.Add([]byte("# x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		if again, err := ParseKey([]byte(k.Text())); err != nil || again != k {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

// BenchmarkSeal is of one run, as it is stored.
func BenchmarkSeal(b *testing.B) {
	d := newDomain(b)
	for _, n := range []int{16 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n+Overhead)
			b.SetBytes(int64(n))
			for b.Loop() {
				mustSeal(b, d, buf, buf[SaltBytes:][:n], "run")
			}
		})
	}
}
