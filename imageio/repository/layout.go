package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"fermata/imageio/manifest"
	"fermata/imageio/pack"
)

// The names of files and directories; FORMAT.md says what each means.
const (
	recordName  = "fermata-repository"
	packsName   = "packs"
	clusterName = "clusters"
	claimsName  = "claims"
	keysName    = "keys"
	ownerName   = "owner"
	reserveName = "reserve"

	tempSuffix      = ".tmp"
	packSuffix      = ".pack"
	packTempSuffix  = ".pack.tmp"
	condemnedInfix  = ".pack.condemned."
	movedInfix      = ".pack.moved."
	emptyInfix      = ".pack.empty."
	damagedSuffix   = ".pack.damaged"
	outcomeSuffix   = ".outcome"
	damageSuffix    = ".damage"
	claimSuffix     = ".claim"
	keySuffix       = ".key"
	buryTempPrefix  = ".bury."
	epochDigits     = 20 // of the largest uint64, so that names sort by epoch
	tokenBytes      = 8  // of randomness in temporary names
	packShardDigits = 2
)

func (r *Repository) recordPath() string { return filepath.Join(r.cfg.Dir, recordName) }
func (r *Repository) packsDir() string   { return filepath.Join(r.cfg.Dir, packsName) }

func (r *Repository) packDir(id pack.ID) string {
	return filepath.Join(r.packsDir(), id.String()[:packShardDigits])
}

func (r *Repository) packPath(id pack.ID) string {
	return filepath.Join(r.packDir(id), id.String()+packSuffix)
}

func (r *Repository) packTempPath(id pack.ID, e epochKey) string {
	return filepath.Join(r.packDir(id), fmt.Sprintf("%s.%s.%0*d%s", id, e.cluster, epochDigits, e.epoch, packTempSuffix))
}

func (r *Repository) damagedPath(id pack.ID) string {
	return filepath.Join(r.packDir(id), id.String()+damagedSuffix)
}

func (r *Repository) condemnedPath(id pack.ID, token string) string {
	return filepath.Join(r.packDir(id), id.String()+condemnedInfix+token)
}

func (r *Repository) movedPath(id, to pack.ID) string {
	return filepath.Join(r.packDir(id), id.String()+movedInfix+to.String())
}

func (r *Repository) clusterDir(cluster string) string {
	return filepath.Join(r.cfg.Dir, clusterName, cluster)
}

func (r *Repository) claimDir(cluster string) string {
	return filepath.Join(r.cfg.Dir, claimsName, cluster)
}

func (r *Repository) outcomePath(e epochKey) string {
	return filepath.Join(r.clusterDir(e.cluster), outcomeFile(e.epoch))
}

func outcomeFile(epoch uint64) string {
	return fmt.Sprintf("%0*d%s", epochDigits, epoch, outcomeSuffix)
}

// epochKey names a round.
type epochKey struct {
	cluster string
	epoch   uint64
}

func (e epochKey) String() string { return fmt.Sprintf("%s@%d", e.cluster, e.epoch) }

// parseEpoch reads the fixed-width form only, so that a name has one meaning.
func parseEpoch(s string) (uint64, bool) {
	if len(s) != epochDigits {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// parseOutcomeName reads the name of an outcome record.
func parseOutcomeName(name string) (epoch uint64, ok bool) {
	s, ok := strings.CutSuffix(name, outcomeSuffix)
	if !ok {
		return 0, false
	}
	return parseEpoch(s)
}

// parseDamageName reads the name of a damage record.
func parseDamageName(name string) (epoch uint64, ok bool) {
	s, ok := strings.CutSuffix(name, damageSuffix)
	if !ok {
		return 0, false
	}
	return parseEpoch(s)
}

// tempRecord is a temporary name in a cluster's directory.
type tempRecord struct {
	epoch  uint64
	buries bool // belongs to a Delete
}

// parseTempName reads .EPOCH.TOKEN.tmp and .bury.EPOCH.TOKEN.tmp.
func parseTempName(name string) (t tempRecord, ok bool) {
	s, ok := strings.CutSuffix(name, tempSuffix)
	if !ok {
		return tempRecord{}, false
	}
	s, t.buries = strings.CutPrefix(s, buryTempPrefix)
	if !t.buries {
		if s, ok = strings.CutPrefix(s, "."); !ok {
			return tempRecord{}, false
		}
	}
	digits, token, ok := strings.Cut(s, ".")
	if !ok || !isToken(token) {
		return tempRecord{}, false
	}
	t.epoch, ok = parseEpoch(digits)
	return t, ok
}

// parseClaimName reads EPOCH.TOKEN.claim and its temporary form.
func parseClaimName(name string) (epoch uint64, temp, ok bool) {
	name, temp = strings.CutSuffix(name, tempSuffix)
	s, ok := strings.CutSuffix(name, claimSuffix)
	if !ok {
		return 0, false, false
	}
	digits, token, ok := strings.Cut(s, ".")
	if !ok || !isToken(token) {
		return 0, false, false
	}
	epoch, ok = parseEpoch(digits)
	return epoch, temp, ok
}

func isToken(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == tokenBytes
}

// packState is what a name in a pack directory says.
type packState int

const (
	packFinal packState = iota + 1
	packTemp
	packCondemned
	packDamaged
	packMoved // what of it is needed is in another pack; see compact.go
	packEmpty // empty file, about to take the place of a moved pack's bytes
)

// packFile is one parsed name in a pack directory.
type packFile struct {
	id    pack.ID
	state packState
	name  string
	epoch epochKey // of a temporary pack
	to    pack.ID  // of a moved pack
}

func parsePackName(name string) (packFile, bool) {
	hexID, rest, ok := strings.Cut(name, ".")
	if !ok {
		return packFile{}, false
	}
	id, err := pack.ParseID(hexID)
	if err != nil {
		return packFile{}, false
	}
	p, rest := packFile{id: id, name: name}, "."+rest
	switch {
	case rest == packSuffix:
		p.state = packFinal
	case rest == damagedSuffix:
		p.state = packDamaged
	case strings.HasPrefix(rest, condemnedInfix) && isToken(rest[len(condemnedInfix):]):
		p.state = packCondemned
	case strings.HasPrefix(rest, movedInfix):
		p.state = packMoved
		if p.to, err = pack.ParseID(rest[len(movedInfix):]); err != nil {
			return packFile{}, false
		}
	case strings.HasPrefix(rest, emptyInfix) && isToken(rest[len(emptyInfix):]):
		p.state = packEmpty
	case strings.HasSuffix(rest, packTempSuffix):
		p.state = packTemp
		cluster, digits, ok := strings.Cut(strings.TrimSuffix(rest[1:], packTempSuffix), ".")
		if !ok || manifest.ValidCluster(cluster) != nil {
			return packFile{}, false
		}
		epoch, ok := parseEpoch(digits)
		if !ok {
			return packFile{}, false
		}
		p.epoch = epochKey{cluster, epoch}
	default:
		return packFile{}, false
	}
	return p, true
}

// makeDirs makes the fixed directories. All shards of the packs are made at
// once, so that no checkpoint waits for a new directory to become durable.
func (r *Repository) makeDirs(ctx context.Context) error {
	if err := r.ensureDir(r.cfg.Dir); err != nil {
		return err
	}
	for _, name := range []string{packsName, clusterName, claimsName} {
		if err := mkdir(r.fs.Mkdir, filepath.Join(r.cfg.Dir, name)); err != nil {
			return err
		}
	}
	if r.cfg.PrepareDir != nil {
		if err := r.cfg.PrepareDir(ctx, r.packsDir()); err != nil {
			return fmt.Errorf("prepare %s: %w", r.packsDir(), err)
		}
	}
	for i := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := mkdir(r.fs.Mkdir, filepath.Join(r.packsDir(), fmt.Sprintf("%02x", i))); err != nil {
			return err
		}
	}
	if err := r.fs.SyncDir(r.packsDir()); err != nil {
		return err
	}
	return r.fs.SyncDir(r.cfg.Dir)
}

// ensureDir makes a directory of the repository, durably. It syncs the parent
// even if the directory was there: whoever made it may not have yet. A parent
// below the repository's own directory is made, too: tools that copy
// repositories may have left it out while it was empty.
func (r *Repository) ensureDir(dir string) error {
	parent := filepath.Dir(dir)
	err := mkdir(r.fs.Mkdir, dir)
	if errors.Is(err, fs.ErrNotExist) && parent != filepath.Clean(r.cfg.Dir) && strings.HasPrefix(parent, filepath.Clean(r.cfg.Dir)+string(filepath.Separator)) {
		if err := r.ensureDir(parent); err != nil {
			return err
		}
		err = mkdir(r.fs.Mkdir, dir)
	}
	if err != nil {
		return err
	}
	return r.fs.SyncDir(parent)
}

func mkdir(do func(string) error, dir string) error {
	if err := do(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// listDir is List that takes a directory that is not there for empty: tools
// that copy repositories may leave empty directories out.
func (r *Repository) listDir(dir string) ([]string, error) {
	names, err := r.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	return names, nil
}

// listPacks reads the names of all pack directories.
func (r *Repository) listPacks(ctx context.Context) ([]packFile, error) {
	var all []packFile
	shards, err := r.listDir(r.packsDir())
	if err != nil {
		return nil, err
	}
	for _, shard := range shards {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		names, err := r.listDir(filepath.Join(r.packsDir(), shard))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if p, ok := parsePackName(name); ok && strings.HasPrefix(name, shard) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}
