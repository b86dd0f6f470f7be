// Package journal is the durable memory of one node: which guests it made,
// which coordinator it obeys and how far its checkpoint rounds went. A record
// is on disk before the node acts on it, so that an agent that starts again
// finds every process and every promise of its predecessor.
//
// The store is one bbolt file; each call is one synced transaction.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
)

// openTimeout bounds the wait for another process that still holds the file.
const openTimeout = time.Second

var (
	bucketClusters = []byte("clusters")
	bucketGuests   = []byte("guests")
	bucketRounds   = []byte("rounds")
)

// ErrLocked means that another process has the journal open.
var ErrLocked = errors.New("journal is in use by another process")

// Cluster is what a node knows of one cluster.
type Cluster struct {
	Name  string `json:"name"`
	Store uint64 `json:"store"` // whose tokens Fence compares with; 0: none yet
	Fence uint64 `json:"fence"` // largest token of Store seen; only grows
	// RetiredStores were replaced by Store; their coordinators are refused.
	RetiredStores []uint64 `json:"retired_stores,omitempty"`
	Epoch         uint64   `json:"epoch"` // the cluster's present life started in this epoch
	// Released is true from the moment before its guests first run.
	Released bool              `json:"released"`
	Peers    map[string]string `json:"peers"` // node -> fabric address
	// Cards are the NICs of the peers' guests, by node. Records of earlier versions
	// have none.
	Cards   map[string][]Card `json:"cards,omitempty"`
	Uplinks []Uplink          `json:"uplinks,omitempty"`
}

// Card is a NIC of a guest on another node.
type Card struct {
	Network string `json:"network"`
	MAC     []byte `json:"mac"`
}

// Uplink joins a network of a cluster to a bridge of this node.
type Uplink struct {
	Network string `json:"network"`
	Bridge  string `json:"bridge"` // name in the configuration
	Outside int    `json:"outside"`
	MTU     uint32 `json:"mtu,omitempty"`
}

// Guest is what a node must know to find a guest again, or to clean up after
// one that was only half made.
type Guest struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	Epoch   uint64 `json:"epoch,omitempty"` // in which its life began; 0: that of its cluster, says an older journal
	// Spec is the guest's specification, as protobuf JSON.
	Spec json.RawMessage `json:"spec"`
	// Machine is the driver's record of the running process. Empty while the
	// guest is being made.
	Machine json.RawMessage `json:"machine,omitempty"`
	// Created is true once the guest was complete: restored and joined to the fabric.
	Created bool `json:"created"`
	// Ending is how the guest has ended by itself; nil: it has not, as far as is known.
	Ending *Ending `json:"ending,omitempty"`
	// Bases are the files below the guest's disks, as they were when it was made; nil: not
	// known yet.
	Bases []Base `json:"bases,omitempty"`
	// Confidential is memory that the guest has registered as such, Zeroed what was
	// confidential in the checkpoint that it began from; guest-physical.
	Confidential []extent.Extent `json:"confidential,omitempty"`
	Zeroed       []extent.Extent `json:"zeroed,omitempty"`
}

// Ending is the end of a guest that nobody has asked for.
type Ending struct {
	UnixNS int64  `json:"unix_ns,omitempty"` // 0: nobody knows when
	Why    string `json:"why"`
}

// Journal is the open file.
//
// Concurrency: safe for use by several goroutines.
type Journal struct {
	db *bbolt.DB
}

// Open opens the journal in dir, creating it when absent.
func Open(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create journal directory: %w", err)
	}
	path := filepath.Join(dir, "journal.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: openTimeout})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	reserve(path)
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketClusters, bucketGuests, bucketRounds, bucketDigests} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), db.Close())
	}
	return &Journal{db: db}, nil
}

// reserved is how much room of its file system the journal takes at once: a guest and a
// round take a few KiB, and bbolt uses pages again.
const reserved = 8 << 20

// reserve takes the journal's room beforehand, so that it can be written when guests,
// their consoles or anybody else have filled the file system. Where that cannot be,
// because there is no room or the file system does not know how, the journal works
// without.
func reserve(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.Fallocate(int(f.Fd()), 0, 0, reserved)
}

// Close releases the file.
func (j *Journal) Close() error { return j.db.Close() }

// PutCluster makes c durable.
func (j *Journal) PutCluster(c Cluster) error {
	return j.put(bucketClusters, c.Name, c)
}

// PutGuest makes g durable.
func (j *Journal) PutGuest(g Guest) error {
	return j.put(bucketGuests, g.Cluster+"/"+g.Name, g)
}

// UpdateGuest changes the record of a guest, durably.
//
// On error: the record is as it was; there may be none.
func (j *Journal) UpdateGuest(cluster, guest string, change func(*Guest)) error {
	key := []byte(cluster + "/" + guest)
	return j.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketGuests)
		var g Guest
		if err := json.Unmarshal(b.Get(key), &g); err != nil {
			return fmt.Errorf("record of guest %s: %w", key, err)
		}
		change(&g)
		encoded, err := json.Marshal(g)
		if err != nil {
			return err
		}
		return b.Put(key, encoded)
	})
}

// PutRound makes the record of a cluster's round durable. The bytes are the
// round state machine's own.
func (j *Journal) PutRound(cluster string, record []byte) error {
	return j.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketRounds).Put([]byte(cluster), record)
	})
}

// DeleteRound forgets the rounds of a cluster whose life has ended.
func (j *Journal) DeleteRound(cluster string) error {
	return j.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketRounds).Delete([]byte(cluster)) })
}

// DeleteGuest forgets a guest of which nothing is left.
func (j *Journal) DeleteGuest(cluster, guest string) error {
	return j.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketGuests).Delete([]byte(cluster + "/" + guest))
	})
}

// Clusters returns all clusters by name.
func (j *Journal) Clusters() (map[string]Cluster, error) {
	out := map[string]Cluster{}
	err := each(j.db, bucketClusters, func(_ string, c Cluster) { out[c.Name] = c })
	return out, err
}

// Guests returns all guests, ordered by cluster and name.
func (j *Journal) Guests() ([]Guest, error) {
	var out []Guest
	err := each(j.db, bucketGuests, func(_ string, g Guest) { out = append(out, g) })
	return out, err
}

// Rounds returns the newest round record of each cluster.
func (j *Journal) Rounds() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketRounds).ForEach(func(k, v []byte) error {
			out[string(k)] = append([]byte(nil), v...)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal rounds: %w", err)
	}
	return out, nil
}

func (j *Journal) put(bucket []byte, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode journal record %s: %w", key, err)
	}
	return j.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), b) })
}

func (j *Journal) update(f func(*bbolt.Tx) error) error {
	if err := j.db.Update(f); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func each[T any](db *bbolt.DB, bucket []byte, f func(key string, v T)) error {
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, b []byte) error {
			var v T
			if err := json.Unmarshal(b, &v); err != nil {
				return fmt.Errorf("record %s: %w", k, err)
			}
			f(string(k), v)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}
