package journal

import (
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"
)

var bucketDigests = []byte("digests")

// maxDigests bounds the files that are remembered. A node has a few base images.
const maxDigests = 4096

// Digest is the content of a file, and what the file was known by then.
type Digest struct {
	Device     uint64 `json:"device"`
	Inode      uint64 `json:"inode"`
	Size       int64  `json:"size"`
	ModifiedNS int64  `json:"modified_ns"`
	ChangedNS  int64  `json:"changed_ns"`
	SHA256     string `json:"sha256"`
}

// Base is a file below one of a guest's disks.
type Base struct {
	Disk       string `json:"disk"`
	Path       string `json:"path"`
	Size       uint64 `json:"size"`
	ModifiedNS int64  `json:"modified_ns"`
	SHA256     []byte `json:"sha256"`
}

func digestKey(device, inode uint64) []byte { return fmt.Appendf(nil, "%d:%d", device, inode) }

// Digest returns what is remembered of a file; the zero Digest for nothing.
func (j *Journal) Digest(device, inode uint64) (d Digest, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketDigests).Get(digestKey(device, inode))
		if b == nil {
			return nil
		}
		return json.Unmarshal(b, &d)
	})
	if err != nil {
		return Digest{}, fmt.Errorf("read journal digests: %w", err)
	}
	return d, nil
}

// PutDigest remembers d, and forgets another file when there are too many.
func (j *Journal) PutDigest(d Digest) error {
	encoded, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode digest: %w", err)
	}
	return j.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketDigests)
		if b.Stats().KeyN >= maxDigests {
			if first, _ := b.Cursor().First(); first != nil {
				if err := b.Delete(first); err != nil {
					return err
				}
			}
		}
		return b.Put(digestKey(d.Device, d.Inode), encoded)
	})
}
