package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/vfs"
)

// ErrOwned is matched by every *OwnedError.
var ErrOwned = errors.New("repository belongs to another installation")

// OwnedError says that a repository belongs to another installation.
type OwnedError struct{ Owner Owner }

func (e *OwnedError) Error() string {
	return fmt.Sprintf("repository belongs to installation %s", e.Owner)
}

// Is makes every OwnedError match ErrOwned.
func (e *OwnedError) Is(target error) bool { return target == ErrOwned }

// Owner is the installation whose clusters a repository holds: names of clusters mean
// something within one installation only.
type Owner struct {
	Installation string // what tells installations apart
	Name         string // for people
	Since        time.Time
}

func (o Owner) String() string {
	return fmt.Sprintf("%.16s (%s, since %s)", o.Installation, o.Name, o.Since.UTC().Format(time.DateTime+" UTC"))
}

// ownerRecord is the body of the file that names the owner.
type ownerRecord struct {
	Installation string `json:"installation"`
	Name         string `json:"name"`
	Since        int64  `json:"since_unix_ns"`
}

func ownerKind() frame.Kind {
	return frame.Kind{Name: "owner record", Magic: [8]byte{'F', 'M', 'O', 'W', 'N', 'E', 'R', 'S'}, Version: 1, MaxBody: 4096}
}

func (r *Repository) ownerPath() string { return filepath.Join(r.cfg.Dir, ownerName) }

// Owner returns the installation that a repository belongs to.
//
// On error: ErrNotFound if it belongs to none.
func (r *Repository) Owner(context.Context) (Owner, error) {
	data, err := vfs.ReadFile(r.fs, r.ownerPath(), ownerKind().MaxLen())
	if errors.Is(err, fs.ErrNotExist) {
		return Owner{}, fmt.Errorf("owner of repository %s: %w", r.cfg.Dir, ErrNotFound)
	}
	var rec ownerRecord
	if err == nil {
		rec, err = decodeOwner(data)
	}
	if err != nil {
		return Owner{}, fmt.Errorf("owner of repository %s: %w", r.cfg.Dir, err)
	}
	return Owner{Installation: rec.Installation, Name: rec.Name, Since: time.Unix(0, rec.Since)}, nil
}

func decodeOwner(data []byte) (rec ownerRecord, err error) {
	body, err := ownerKind().Decode(data)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(body, &rec); err != nil {
		return rec, damage.New(ownerKind().Name, err)
	}
	if rec.Installation == "" {
		return rec, damage.New(ownerKind().Name, errors.New("names no installation"))
	}
	return rec, nil
}

// Own makes a repository that belongs to none an installation's. Owning it again
// succeeds. Of several installations that try at once one gets it.
//
// On error: *OwnedError if another one has it.
func (r *Repository) Own(ctx context.Context, installation, name string) error {
	owner, err := r.Owner(ctx)
	if errors.Is(err, ErrNotFound) {
		if err := r.tryOwn(installation, name); err != nil && !errors.Is(err, errTaken) {
			return fmt.Errorf("own repository %s: %w", r.cfg.Dir, err)
		}
		owner, err = r.Owner(ctx)
	}
	if err != nil {
		return err
	}
	if owner.Installation != installation {
		return &OwnedError{Owner: owner}
	}
	return nil
}

func (r *Repository) tryOwn(installation, name string) error {
	body, err := json.Marshal(ownerRecord{Installation: installation, Name: name, Since: time.Now().UnixNano()})
	if err != nil {
		return err
	}
	data, err := ownerKind().Encode(body)
	if err != nil {
		return err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return err
	}
	return createExclusive(r.fs, r.cfg.Dir, "."+ownerName+"."+token+tempSuffix, ownerName, data)
}

// Disown makes a repository belong to no installation: the next one that uses it owns
// it. It returns who did.
//
// On error: ErrNotFound if nobody did.
func (r *Repository) Disown(ctx context.Context) (Owner, error) {
	owner, err := r.Owner(ctx)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return Owner{}, err
	}
	if err := r.fs.Remove(r.ownerPath()); err != nil {
		return Owner{}, fmt.Errorf("disown repository %s: %w", r.cfg.Dir, err)
	}
	return owner, r.fs.SyncDir(r.cfg.Dir)
}
