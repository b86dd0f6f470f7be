// Package manifest is the schema of the records that decide an epoch: the
// manifest, which commits a checkpoint, and the tombstone, which rules that
// there is none.
//
// Both are frames (package frame) with a JSON body. Readers ignore fields they
// do not know: a field may be added within a version if a reader that ignores
// it still restores the checkpoint right; any other change is a new version.
package manifest

import (
	"encoding/json"

	"fermata/imageio/object"
)

// Manifest is the commit record of one checkpoint, and all that is needed,
// next to the packs it names, to restart the cluster.
type Manifest struct {
	Cluster          string          `json:"cluster"`
	Epoch            uint64          `json:"epoch"`
	CreatedUnixNS    int64           `json:"created_unix_ns"`
	Label            string          `json:"label,omitempty"`
	Spec             []byte          `json:"spec,omitempty"` // cluster specification, opaque here
	FenceToken       uint64          `json:"fence_token"`    // of the coordinator that committed
	ChannelsRecorded bool            `json:"channels_recorded"`
	Networks         json.RawMessage `json:"networks,omitempty"` // whose frames were recorded, opaque here
	Guests           []Guest         `json:"guests"`
	Packs            []string        `json:"packs"` // every pack that a restart needs, hexadecimal
	Stats            Stats           `json:"stats"`
	Report           json.RawMessage `json:"report,omitempty"` // opaque here
}

// Guest is one guest's part.
type Guest struct {
	Name    string          `json:"name"`
	Node    string          `json:"node"`              // where it ran
	Machine json.RawMessage `json:"machine,omitempty"` // description of the machine, opaque here
	Objects []Object        `json:"objects"`
	Report  json.RawMessage `json:"report,omitempty"` // opaque here

	// Confidential is memory that the guest has registered not to be read: the image
	// has zeros there.
	Confidential []Range `json:"confidential,omitempty"`

	// Files are those that the guest's disks lie on and that no image holds, top ones
	// first. Manifests of earlier versions name none.
	Files []File `json:"files,omitempty"`
}

// File identifies a file by its content.
type File struct {
	Disk           string `json:"disk"` // of the guest
	Path           string `json:"path"`
	SizeBytes      uint64 `json:"size_bytes"`
	ModifiedUnixNS int64  `json:"modified_unix_ns"` // a copy elsewhere may have another time
	SHA256         string `json:"sha256"`           // hexadecimal
}

// Range is guest-physical memory.
type Range struct {
	Start uint64 `json:"start"` // address
	Bytes uint64 `json:"bytes"`
}

// Object is one image of a guest.
type Object struct {
	Kind      Kind      `json:"kind"`
	Name      string    `json:"name"` // memory block, disk, NIC …; unique for its kind within the guest
	ID        object.ID `json:"id"`
	SizeBytes uint64    `json:"size_bytes"`
	Count     uint64    `json:"count,omitempty"` // frames, for a channel
}

// Kind is what an image holds.
type Kind string

const (
	KindMemory   Kind = "memory"
	KindDisk     Kind = "disk"
	KindDevices  Kind = "devices"
	KindBootFile Kind = "boot-file"
	KindChannel  Kind = "channel"
)

// Valid says that k is known.
func (k Kind) Valid() bool {
	switch k {
	case KindMemory, KindDisk, KindDevices, KindBootFile, KindChannel:
		return true
	default:
		return false
	}
}

// Stats sums up what the checkpoint holds and cost.
type Stats struct {
	RawBytes     uint64            `json:"raw_bytes"`
	NonZeroBytes uint64            `json:"non_zero_bytes"`
	NewBytes     uint64            `json:"new_bytes"`    // non-zero pages stored for the first time
	StoredBytes  uint64            `json:"stored_bytes"` // added to packs, compressed
	TimingsUS    map[string]uint64 `json:"timings_us,omitempty"`
}

// Verdict is why an epoch has no checkpoint.
type Verdict string

const (
	Aborted Verdict = "aborted" // never had one
	Deleted Verdict = "deleted" // had one
)

// Tombstone takes the place of a manifest, for ever.
type Tombstone struct {
	Cluster string  `json:"cluster"`
	Epoch   uint64  `json:"epoch"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"`
}
