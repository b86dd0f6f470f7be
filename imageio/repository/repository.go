// Package repository is the content-addressed store of checkpoints on one
// directory of a parallel file system. FORMAT.md is its specification and
// carries the arguments; this package is the one that other parts use.
//
// A node writes images through a Writer, which adds packs and nothing else. The
// coordinator makes them a checkpoint with Commit, or rules with Abort that
// there will be none; whichever comes first stands for ever. Restart reads
// through a Reader. Delete, Sweep and Prune take space back; Check and Repair look
// after what is there; Copy, Export and Import take it elsewhere.
//
// No operation takes a lock that another node could see, and none keeps state
// outside the directory: any number of processes may use one repository.
//
// Invariants, argued in FORMAT.md:
//
//	R1  An epoch of a cluster has at most one outcome, and it never changes
//	    but from manifest to tombstone.
//	R2  A manifest that can be read names only packs that were whole and
//	    durable when it was committed.
//	R3  Sweep removes no pack that a manifest or a round in flight needs, and
//	    Prune no object.
//	R4  No byte reaches a caller whose hash was not checked.
//	R5  What can be read stays so while packs are compacted or repaired.
//
// Lock order: Writer.endMu, Writer.mu; pendingShard.mu, then the locks of
// package index. No lock but Writer.mu is held during file operations.
package repository

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"time"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/index"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
)

// Config says where a repository is and how this process writes to it. The
// zero value of an optional field selects the default written beside it. All
// but FS and Dir may differ between processes and over time.
type Config struct {
	FS  vfs.FS // optional: the operating system's
	Dir string // required

	Compression string // of new runs: s2 (default), zstd or none
	RunBytes    int    // of new runs before compression; default 256 KiB, at most 1 MiB, whole pages
	PackBytes   int    // at which a pack is finished; default 64 MiB, at most 1 GiB

	// Workers bounds the goroutines that hash, compress and decompress for one
	// Writer or one read. Default GOMAXPROCS.
	Workers int

	// IndexBytes bounds the memory of the index of what need not be stored again. Packs that
	// find no room in it are not relied on. 0: no bound.
	IndexBytes int64

	// Patience is how long operations are asked again that fail with an error which may pass,
	// as while a server of the file system takes over from another; vfs.Retrying says which.
	// Default 10s; negative: they are not.
	Patience time.Duration

	// Direct writes packs around the page cache (O_DIRECT), where the file system
	// can. Not with FS.
	Direct bool
	// Preallocate reserves the length of a pack before it is written, for a Writer
	// that has filled one already.
	Preallocate bool
	// WriteBytesPerSecond bounds what this process writes. 0: no bound.
	WriteBytesPerSecond int64
	// PrepareDir is called by Create with the directory of the packs, before anything
	// is in it: for hints on striping, which directories below inherit.
	PrepareDir func(ctx context.Context, dir string) error

	// Key encrypts a repository that Create makes, and opens it later. Nil: it is not
	// encrypted.
	Key *seal.Key

	// Random is where names come from. Default crypto/rand. Tests that compare
	// directories byte by byte set it.
	Random io.Reader
}

const (
	// defaultRunBytes is what one page read costs at most; larger runs
	// compress by a few per cent better and make lazy reads dearer.
	defaultRunBytes = 256 << 10
	// defaultPackBytes keeps a pack well above a stripe of a parallel file
	// system, and the number of files low: 16 for a GiB.
	defaultPackBytes = 64 << 20
	maxPackBytes     = 1 << 30
)

// retrying is a file system with the patience that is configured.
func (c *Config) retrying(ctx context.Context, fsys vfs.FS) vfs.FS {
	if c.Patience < 0 {
		return fsys
	}
	return vfs.Retrying(ctx, fsys, c.Patience)
}

func (c *Config) applyDefaults() {
	if c.Patience == 0 {
		c.Patience = vfs.DefaultPatience
	}
	if c.FS == nil {
		c.FS = vfs.OS{Direct: c.Direct}
	}
	if c.WriteBytesPerSecond > 0 {
		c.FS = vfs.Throttled(c.FS, c.WriteBytesPerSecond)
	}
	if c.Compression == "" {
		c.Compression = pack.S2.String()
	}
	if c.RunBytes == 0 {
		c.RunBytes = defaultRunBytes
	}
	if c.PackBytes == 0 {
		c.PackBytes = defaultPackBytes
	}
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
}

// Validate reports every problem at once. Defaults must have been applied, or
// the zero values of optional fields are accepted as they are.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: missing"))
	}
	if c.Compression != "" {
		if _, err := pack.ParseAlgorithm(c.Compression); err != nil {
			errs = append(errs, err)
		}
	}
	if c.RunBytes < 0 || c.RunBytes > pack.MaxRunBytes || c.RunBytes%object.PageBytes != 0 {
		errs = append(errs, fmt.Errorf("run bytes: %d is not whole pages of at most %d bytes", c.RunBytes, pack.MaxRunBytes))
	}
	if c.PackBytes < 0 || c.PackBytes > maxPackBytes {
		errs = append(errs, fmt.Errorf("pack bytes: %d is not 0 to %d", c.PackBytes, maxPackBytes))
	}
	if c.IndexBytes < 0 {
		errs = append(errs, fmt.Errorf("index bytes: negative (%d)", c.IndexBytes))
	}
	if c.WriteBytesPerSecond < 0 {
		errs = append(errs, fmt.Errorf("bytes a second: negative (%d)", c.WriteBytesPerSecond))
	}
	if c.Workers < 0 {
		errs = append(errs, fmt.Errorf("workers: negative (%d)", c.Workers))
	}
	return errors.Join(errs...)
}

// Repository is an open repository.
//
// Concurrency: all methods may be called from any goroutine.
type Repository struct {
	cfg   Config       // immutable, defaults applied
	fs    vfs.FS       // immutable
	id    string       // immutable
	index *index.Index // what writers need not store again; see Refresh
	room  *indexRoom   // of index
	seed  maphash.Seed // immutable; of the fingerprints in Images

	domain *seal.Domain // immutable; nil: not encrypted

	randomMu *sync.Mutex // guards cfg.Random; shared with what Within makes

	bounds *vfs.Bounds // of fs
}

// Within is the same repository for somebody who cannot wait for ever: its file
// operations end with ctx, and after limit (0: no limit) with vfs.ErrNoAnswer,
// whatever the file system does. What it makes, writers and readers, is bounded
// in the same way.
func (r *Repository) Within(ctx context.Context, limit time.Duration) *Repository {
	w := *r
	w.fs = present{r.cfg.retrying(ctx, r.bounds.Within(ctx, r.cfg.FS, limit)), r.recordPath()}
	return &w
}

// record is the body of the file that makes a directory a repository.
type record struct {
	ID        string `json:"id"` // random, 32 hexadecimal digits
	Hash      string `json:"hash"`
	PageBytes int    `json:"page_bytes"`
	Cipher    string `json:"cipher,omitempty"` // in version 2, which is encrypted
}

const hashName = "sha-256"

const (
	plainRecord     = 1
	encryptedRecord = 2
)

func recordKind(version uint32) frame.Kind {
	return frame.Kind{Name: "repository record", Magic: [8]byte{'F', 'M', 'R', 'E', 'P', 'O', 'S', 'I'}, Version: version, MaxBody: 4096}
}

// Create makes an empty repository in cfg.Dir, which it creates if its parent
// exists. It fails with ErrExists where there is one. A crash leaves either a
// repository or a directory in which Create may be called again.
func Create(ctx context.Context, cfg Config) (*Repository, error) {
	cfg.applyDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	r := &Repository{cfg: cfg, fs: cfg.retrying(context.Background(), cfg.FS), index: index.New(), room: newIndexRoom(cfg.IndexBytes), seed: maphash.MakeSeed(), randomMu: &sync.Mutex{}, bounds: &vfs.Bounds{}}
	if err := r.create(ctx); err != nil {
		return nil, fmt.Errorf("create repository %s: %w", cfg.Dir, err)
	}
	r.fs = present{r.fs, r.recordPath()}
	return r, nil
}

func (r *Repository) create(ctx context.Context) error {
	if _, err := r.fs.Stat(r.recordPath()); err == nil {
		return ErrExists
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.probeLinks(); err != nil {
		return err
	}
	if err := r.makeDirs(ctx); err != nil {
		return err
	}
	id, err := r.randomHex(16)
	if err != nil {
		return err
	}
	r.id = id
	rec, version := record{ID: id, Hash: hashName, PageBytes: object.PageBytes}, uint32(plainRecord)
	if r.cfg.Key != nil {
		rec.Cipher, version = cipherName, encryptedRecord
		if r.domain, err = seal.NewDomain(); err != nil {
			return err
		}
		if err := r.writeKey(*r.cfg.Key); err != nil {
			return err
		}
	}
	body, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	data, err := recordKind(version).Encode(body)
	if err != nil {
		return err
	}
	err = createExclusive(r.fs, r.cfg.Dir, "."+recordName+"."+id+tempSuffix, recordName, data)
	if errors.Is(err, errTaken) {
		return ErrExists
	}
	return err
}

// Open opens the repository in cfg.Dir. It reads one small file; see Refresh.
//
// On error: ErrNotRepository, ErrNewerFormat, ErrCorrupt, ErrKeyMissing, ErrWrongKey, ErrNotEncrypted,
// or what the file system said.
func Open(_ context.Context, cfg Config) (*Repository, error) {
	cfg.applyDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	r := &Repository{cfg: cfg, fs: cfg.retrying(context.Background(), cfg.FS), index: index.New(), room: newIndexRoom(cfg.IndexBytes), seed: maphash.MakeSeed(), randomMu: &sync.Mutex{}, bounds: &vfs.Bounds{}}
	data, err := vfs.ReadFile(r.fs, r.recordPath(), recordKind(plainRecord).MaxLen())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open repository %s: %w", cfg.Dir, errors.Join(ErrNotRepository, err))
	}
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", cfg.Dir, err)
	}
	rec, err := decodeRecord(data)
	if err == nil {
		r.id = rec.ID
		err = r.unlock(rec.Cipher != "")
	}
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", cfg.Dir, err)
	}
	r.fs = present{r.fs, r.recordPath()}
	return r, nil
}

// unlock gets the data key of an encrypted repository. One that is not encrypted is
// refused if there is a key: somebody may have put it there so that secrets are
// written to it.
func (r *Repository) unlock(encrypted bool) error {
	switch {
	case encrypted && r.cfg.Key == nil:
		return ErrKeyMissing
	case encrypted:
		return r.openDomain()
	case r.cfg.Key != nil:
		return ErrNotEncrypted
	default:
		return nil
	}
}

// decodeRecord reads a repository's record.
//
// On error: damage, or ErrNewerFormat.
func decodeRecord(data []byte) (rec record, err error) {
	kind := recordKind(plainRecord)
	body, err := kind.Decode(data)
	encrypted := errors.Is(err, ErrNewerFormat)
	if encrypted {
		body, err = recordKind(encryptedRecord).Decode(data)
	}
	if err != nil {
		return record{}, err
	}
	if err := json.Unmarshal(body, &rec); err != nil {
		return record{}, damage.New(kind.Name, err)
	}
	if raw, err := hex.DecodeString(rec.ID); err != nil || len(raw) != 16 {
		return record{}, damage.New(kind.Name, fmt.Errorf("id %.80q", rec.ID))
	}
	if rec.Hash != hashName || rec.PageBytes != object.PageBytes || encrypted && rec.Cipher != cipherName {
		return record{}, fmt.Errorf("hash %.40q over pages of %d bytes, cipher %.40q: %w", rec.Hash, rec.PageBytes, rec.Cipher, ErrNewerFormat)
	}
	if !encrypted {
		rec.Cipher = ""
	}
	return rec, nil
}

// ID names the repository; it is random and never changes.
func (r *Repository) ID() string { return r.id }

// randomHex returns a name nobody else will choose.
func (r *Repository) randomHex(n int) (string, error) {
	r.randomMu.Lock()
	defer r.randomMu.Unlock()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.cfg.Random, b); err != nil {
		return "", fmt.Errorf("draw name: %w", err)
	}
	return hex.EncodeToString(b), nil
}

func (r *Repository) newPackID() (pack.ID, error) {
	r.randomMu.Lock()
	defer r.randomMu.Unlock()
	return pack.NewID(r.cfg.Random)
}
