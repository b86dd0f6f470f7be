package repository

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
)

// cipherName is what an encrypted repository's record says.
const cipherName = "aes-256-gcm-hkdf-sha-256"

// wrapping is a data key, as one key opens it: a file in the directory of keys, or
// the beginning of an encrypted export.
type wrapping struct {
	Owner   string `json:"owner"` // what the data key is of
	Key     string `json:"key"`   // ID of the key that opens it
	Wrapped []byte `json:"wrapped"`
}

func wrappingKind() frame.Kind {
	return frame.Kind{Name: "wrapped data key", Magic: [8]byte{'F', 'M', 'K', 'E', 'Y', 'W', 'R', 'P'}, Version: 1, MaxBody: 4096}
}

func encodeWrapping(k seal.Key, domain *seal.Domain, owner string) ([]byte, error) {
	wrapped, err := k.Wrap(domain, owner)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(wrapping{Owner: owner, Key: k.ID(), Wrapped: wrapped})
	if err != nil {
		return nil, err
	}
	return wrappingKind().Encode(body)
}

// decodeWrapping reads the body of a wrapping's frame.
func decodeWrapping(body []byte) (w wrapping, err error) {
	if err := json.Unmarshal(body, &w); err != nil {
		return w, damage.New(wrappingKind().Name, err)
	}
	return w, nil
}

// open returns the data key.
//
// On error: damage, as key is the one that it was wrapped for.
func (w wrapping) open(key seal.Key, owner string) (*seal.Domain, error) {
	domain, err := key.Unwrap(w.Wrapped, owner)
	if err != nil {
		return nil, damage.New(wrappingKind().Name+" for "+key.String(), err)
	}
	return domain, nil
}

// ownerName is what the data key of this repository is wrapped for.
func (r *Repository) ownerName() string { return "repository " + r.id }

// Keys lists the IDs of the keys that open the repository, in order. It has none if
// it is not encrypted.
func (r *Repository) Keys() ([]string, error) {
	names, err := r.listDir(r.keysDir())
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, r.id+"."); ok && strings.HasSuffix(id, keySuffix) {
			ids = append(ids, strings.TrimSuffix(id, keySuffix))
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// KeyID is the ID of the key with which the repository was opened, empty if it is not
// encrypted.
func (r *Repository) KeyID() string {
	if r.cfg.Key == nil {
		return ""
	}
	return r.cfg.Key.ID()
}

// openDomain gets the data key with the configured key.
//
// On error: ErrWrongKey, damage, or what the file system said.
func (r *Repository) openDomain() error {
	key := *r.cfg.Key
	data, err := vfs.ReadFile(r.fs, r.keyPath(key.ID()), wrappingKind().MaxLen())
	if errors.Is(err, fs.ErrNotExist) {
		ids, lerr := r.Keys()
		return errors.Join(fmt.Errorf("%s does not open it; keys that do: %s: %w", key, strings.Join(ids, ", "), ErrWrongKey), lerr)
	}
	if err != nil {
		return err
	}
	body, err := wrappingKind().Decode(data)
	if err != nil {
		return err
	}
	w, err := decodeWrapping(body)
	if err != nil {
		return err
	}
	r.domain, err = w.open(key, r.ownerName())
	return err
}

// AddKey lets another key open the repository. Adding one again succeeds.
//
// On error: ErrNotEncrypted.
func (r *Repository) AddKey(key seal.Key) error {
	if r.domain == nil {
		return fmt.Errorf("add %s: %w", key, ErrNotEncrypted)
	}
	if err := r.writeKey(key); err != nil {
		return fmt.Errorf("add %s: %w", key, err)
	}
	return nil
}

// writeKey wraps the data key, durably. Until the name is there, there is nothing.
func (r *Repository) writeKey(key seal.Key) error {
	data, err := encodeWrapping(key, r.domain, r.ownerName())
	if err != nil {
		return err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return err
	}
	if err := r.ensureDir(r.keysDir()); err != nil {
		return err
	}
	path := r.keyPath(key.ID())
	return r.writeNamed(path+"."+token+tempSuffix, path, data)
}

// RemoveKey takes a key's access away: it does not open the repository any more.
// Whoever copied the data key before can still read what was stored, and what will
// be; against that only a copy to a new repository helps. The key that this
// repository was opened with cannot be removed, so that one always stays.
//
// On error: ErrKeyInUse, ErrNotFound.
func (r *Repository) RemoveKey(id string) error {
	ids, err := r.Keys()
	switch {
	case err != nil:
	case r.domain == nil:
		err = ErrNotEncrypted
	case id == r.KeyID():
		err = ErrKeyInUse
	case !slices.Contains(ids, id):
		err = fmt.Errorf("keys that open it are %s: %w", strings.Join(ids, ", "), ErrNotFound)
	default:
		err = r.removeKeyFiles(id)
	}
	if err != nil {
		return fmt.Errorf("remove key %.40q: %w", id, err)
	}
	return nil
}

// removeKeyFiles removes a key's file, and what a killed writeKey has left of one.
func (r *Repository) removeKeyFiles(id string) error {
	names, err := r.listDir(r.keysDir())
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(r.keysDir(), name)
		if !strings.HasPrefix(path, r.keyPath(id)) {
			continue
		}
		if err := r.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.fs.SyncDir(r.keysDir())
}

// sealedKind frames a record of at most so many bytes that is sealed, whole.
func sealedKind(maxRecord int64) frame.Kind {
	return frame.Kind{Name: "sealed record", Magic: [8]byte{'F', 'M', 'S', 'E', 'A', 'L', 'E', 'D'}, Version: 1, MaxBody: int(maxRecord) + seal.Overhead}
}

// sealRecord returns what is stored for a record. context says which record it is:
// a sealed one that stands elsewhere is refused.
func sealRecord(domain *seal.Domain, context string, record []byte) ([]byte, error) {
	if domain == nil {
		return record, nil
	}
	body, err := domain.Seal(nil, record, context)
	if err != nil {
		return nil, err
	}
	return sealedKind(int64(len(record))).Encode(body)
}

// openRecord returns the record, of at most max bytes, that sealRecord was given.
//
// On error: damage, or ErrNewerFormat.
func openRecord(domain *seal.Domain, context string, stored []byte, max int64) ([]byte, error) {
	kind := sealedKind(max)
	if domain == nil {
		if kind.Is(stored) {
			return nil, damage.New(context, errors.New("is encrypted, the repository is not"))
		}
		return stored, nil
	}
	if !kind.Is(stored) {
		return nil, damage.New(context, errors.New("is not encrypted, the repository is"))
	}
	body, err := kind.Decode(stored)
	if err != nil {
		return nil, err
	}
	record, err := domain.Open(body, context)
	if err != nil {
		return nil, damage.New(context, err)
	}
	return record, nil
}

// readRecord reads the record at path and opens it.
//
// On error: as for openRecord, or what the file system said.
func (r *Repository) readRecord(path, context string, max int64) ([]byte, error) {
	data, err := vfs.ReadFile(r.fs, path, sealedKind(max).MaxLen())
	if err != nil {
		return nil, err
	}
	return openRecord(r.domain, context, data, max)
}

func (r *Repository) keysDir() string { return filepath.Join(r.cfg.Dir, keysName) }

// keyPath has the repository's id in it, as two who create one at once may have
// one key.
func (r *Repository) keyPath(keyID string) string {
	return filepath.Join(r.keysDir(), r.id+"."+keyID+keySuffix)
}
