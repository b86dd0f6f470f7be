package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// claim says that a round in flight relies on packs of earlier rounds. It is
// the writer's half of R3: first the claim is durable, then the writer looks
// whether the packs are there. Sweep does the two in the other order, so one of
// them sees the other. FORMAT.md has the argument in full.
type claim struct {
	Cluster string   `json:"cluster"`
	Epoch   uint64   `json:"epoch"`
	Node    string   `json:"node"`
	Packs   []string `json:"packs"`
}

// maxClaimBody has room for 1.5 million packs, 100 TiB in the default size.
const maxClaimBody = 64 << 20

func claimKind() frame.Kind {
	return frame.Kind{Name: "claim", Magic: [8]byte{'F', 'M', 'P', 'C', 'L', 'A', 'I', 'M'}, Version: 1, MaxBody: maxClaimBody}
}

// claim protects old packs until the writer's epoch has an outcome.
//
// On error: ErrPackMissing if one of them is gone; the index has forgotten it,
// so that the next round does not rely on it.
func (w *Writer) claim(ctx context.Context, packs []string) error {
	if len(packs) == 0 {
		return nil
	}
	if err := w.r.writeClaim(w.epoch, w.node, packs); err != nil {
		return fmt.Errorf("claim packs: %w", err)
	}
	for _, s := range packs {
		err := w.r.requirePacks(ctx, []string{s})
		if errors.Is(err, ErrPackMissing) {
			if id, perr := pack.ParseID(s); perr == nil {
				w.r.index.Remove([]pack.ID{id})
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) writeClaim(e epochKey, node string, packs []string) error {
	body, err := json.Marshal(claim{Cluster: e.cluster, Epoch: e.epoch, Node: node, Packs: packs})
	if err != nil {
		return err
	}
	data, err := claimKind().Encode(body)
	if err == nil {
		data, err = sealRecord(r.domain, claimContext(e), data)
	}
	if err != nil {
		return err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return err
	}
	dir := r.claimDir(e.cluster)
	if err := r.ensureDir(dir); err != nil {
		return err
	}
	name := filepath.Join(dir, fmt.Sprintf("%0*d.%s%s", epochDigits, e.epoch, token, claimSuffix))
	return r.writeNamed(name+tempSuffix, name, data)
}

// writeNamed makes a file that has its name only when all of it is durable, and then
// durably. Temp is in the same directory. What a failure leaves of it, Sweep removes
// with its round, RemoveKey with its key.
func (r *Repository) writeNamed(temp, path string, data []byte) error {
	if err := vfs.WriteFile(r.fs, temp, data); err != nil {
		return err
	}
	if err := r.fs.Rename(temp, path); err != nil {
		return err
	}
	return r.fs.SyncDir(filepath.Dir(path))
}

// claimContext is what a claim is sealed for.
func claimContext(e epochKey) string { return "claim of " + e.String() }

func decodeClaim(e epochKey, data []byte) (node string, packs []pack.ID, err error) {
	body, err := claimKind().Decode(data)
	if err != nil {
		return "", nil, err
	}
	var c claim
	if err := json.Unmarshal(body, &c); err != nil {
		return "", nil, damage.New(claimKind().Name, err)
	}
	if (epochKey{c.Cluster, c.Epoch}) != e {
		return "", nil, damage.New(claimKind().Name, fmt.Errorf("is of %s@%d", c.Cluster, c.Epoch))
	}
	if packs, err = packIDsOf(c.Packs); err != nil {
		return "", nil, damage.New(claimKind().Name, err)
	}
	return c.Node, packs, nil
}

// claimFile is one claim as Sweep finds it.
type claimFile struct {
	epoch epochKey
	path  string
	temp  bool // never counted
	node  string
	packs []pack.ID
	err   error // counts only if the epoch is undecided
}

// readClaims reads all claims. One that vanishes meanwhile had an outcome.
func (r *Repository) readClaims(ctx context.Context) ([]claimFile, error) {
	clusters, err := r.listDir(filepath.Join(r.cfg.Dir, claimsName))
	if err != nil {
		return nil, err
	}
	var all []claimFile
	for _, cluster := range clusters {
		names, err := r.listDir(r.claimDir(cluster))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			epoch, temp, ok := parseClaimName(name)
			if !ok {
				continue
			}
			c := claimFile{epoch: epochKey{cluster, epoch}, path: filepath.Join(r.claimDir(cluster), name), temp: temp}
			if !temp {
				data, err := r.readRecord(c.path, claimContext(c.epoch), claimKind().MaxLen())
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err == nil {
					c.node, c.packs, err = decodeClaim(c.epoch, data)
				}
				c.err = err
			}
			all = append(all, c)
		}
	}
	return all, nil
}
