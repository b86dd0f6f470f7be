package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

const (
	// maxClusterLen is that of a DNS label; the name is a directory as well.
	maxClusterLen = 63
	maxNameLen    = 255
	maxLabelLen   = 256
	maxReasonLen  = 2048
)

// ValidCluster checks the name of a cluster. It becomes a part of paths, so it
// is made of a-z, 0-9 and the hyphen only.
func ValidCluster(name string) error {
	if name == "" || len(name) > maxClusterLen {
		return fmt.Errorf("cluster name %.80q: not 1 to %d characters", name, maxClusterLen)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("cluster name %q: only a-z, 0-9 and - are allowed", name)
		}
	}
	return nil
}

// ValidName checks the name of a guest, node or object.
func ValidName(name string) error {
	if name == "" || len(name) > maxNameLen || !utf8.ValidString(name) || strings.ContainsFunc(name, isControl) {
		return fmt.Errorf("name %.80q: not 1 to %d bytes of printable UTF-8", name, maxNameLen)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// Validate reports every problem at once.
func (m *Manifest) Validate() error {
	var errs []error
	errs = append(errs, ValidCluster(m.Cluster))
	if len(m.Label) > maxLabelLen || !utf8.ValidString(m.Label) {
		errs = append(errs, fmt.Errorf("label: not UTF-8 of at most %d bytes", maxLabelLen))
	}
	guests := map[string]bool{}
	for i := range m.Guests {
		g := &m.Guests[i]
		if guests[g.Name] {
			errs = append(errs, fmt.Errorf("guest %q: twice", g.Name))
		}
		guests[g.Name] = true
		if err := g.validate(); err != nil {
			errs = append(errs, fmt.Errorf("guest %.80q: %w", g.Name, err))
		}
	}
	packs := make(map[string]bool, len(m.Packs))
	for _, p := range m.Packs {
		if _, err := pack.ParseID(p); err != nil {
			errs = append(errs, err)
		}
		if packs[p] {
			errs = append(errs, fmt.Errorf("pack %s: twice", p))
		}
		packs[p] = true
	}
	return errors.Join(errs...)
}

func (g *Guest) validate() error {
	errs := []error{ValidName(g.Name)}
	if g.Node != "" {
		errs = append(errs, ValidName(g.Node))
	}
	type key struct {
		kind Kind
		name string
	}
	seen := map[key]bool{}
	for _, o := range g.Objects {
		k := key{o.Kind, o.Name}
		switch {
		case !o.Kind.Valid():
			errs = append(errs, fmt.Errorf("object %.80q: unknown kind %.80q", o.Name, o.Kind))
		case ValidName(o.Name) != nil:
			errs = append(errs, fmt.Errorf("%s: %w", o.Kind, ValidName(o.Name)))
		case o.ID.IsZero():
			errs = append(errs, fmt.Errorf("%s %q: no id", o.Kind, o.Name))
		case o.SizeBytes > uint64(object.MaxImageBytes):
			errs = append(errs, fmt.Errorf("%s %q: %d bytes, limit %d", o.Kind, o.Name, o.SizeBytes, object.MaxImageBytes))
		case seen[k]:
			errs = append(errs, fmt.Errorf("%s %q: twice", o.Kind, o.Name))
		}
		seen[k] = true
	}
	for _, f := range g.Files {
		if sum, err := hex.DecodeString(f.SHA256); err != nil || len(sum) != sha256.Size {
			errs = append(errs, fmt.Errorf("file %.80q: SHA-256 %.80q", f.Path, f.SHA256))
		}
	}
	return errors.Join(errs...)
}

// Validate reports every problem at once.
func (t Tombstone) Validate() error {
	errs := []error{ValidCluster(t.Cluster)}
	if t.Verdict != Aborted && t.Verdict != Deleted {
		errs = append(errs, fmt.Errorf("verdict %.40q: unknown", t.Verdict))
	}
	if len(t.Reason) > maxReasonLen {
		errs = append(errs, fmt.Errorf("reason of %d bytes, limit %d", len(t.Reason), maxReasonLen))
	}
	return errors.Join(errs...)
}

// cut makes any text a valid reason: an abort must not fail for its wording.
func cut(reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	if len(reason) > maxReasonLen {
		reason = strings.ToValidUTF8(reason[:maxReasonLen], "")
	}
	return reason
}
