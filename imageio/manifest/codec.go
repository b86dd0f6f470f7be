package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
)

// MaxBodyBytes bounds what a manifest makes a reader allocate. A thousand
// guests with ten objects and 256 KiB of opaque fields between them, and
// 400,000 packs, stay under 20 MiB.
const MaxBodyBytes = 64 << 20

const (
	version          = 1
	maxTombstoneBody = 16 << 10
)

func manifestKind() frame.Kind {
	return frame.Kind{Name: "manifest", Magic: [8]byte{'F', 'M', 'M', 'A', 'N', 'I', 'F', 'S'}, Version: version, MaxBody: MaxBodyBytes}
}

func tombstoneKind() frame.Kind {
	return frame.Kind{Name: "tombstone", Magic: [8]byte{'F', 'M', 'T', 'O', 'M', 'B', 'S', 'T'}, Version: version, MaxBody: maxTombstoneBody}
}

// MaxRecordLen is the length of the largest outcome record.
func MaxRecordLen() int64 { return manifestKind().MaxLen() }

// Encode returns the record of m, which it has decoded again and compared. It
// depends on nothing but m, so that a repeated commit can be recognised. JSON
// in opaque fields keeps its value, not its white space.
func Encode(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("manifest %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	data, err := encode(manifestKind(), m)
	if err != nil {
		return nil, fmt.Errorf("manifest %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	back, err := Decode(data)
	if err != nil {
		return nil, fmt.Errorf("manifest %s@%d: read back: %w", m.Cluster, m.Epoch, err)
	}
	again, err := encode(manifestKind(), back)
	if err != nil || !bytes.Equal(again, data) {
		return nil, fmt.Errorf("manifest %s@%d: %w", m.Cluster, m.Epoch, errors.Join(errors.New("reads back differently"), err))
	}
	return data, nil
}

// Decode reads the record of a manifest.
//
// On error: damage, or frame.ErrNewerFormat.
func Decode(data []byte) (*Manifest, error) {
	body, err := manifestKind().Decode(data)
	if err != nil {
		return nil, err
	}
	m := new(Manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, damage.New("manifest", err)
	}
	if err := m.Validate(); err != nil {
		return nil, damage.New("manifest", err)
	}
	return m, nil
}

// IsTombstone tells the record of a tombstone from that of a manifest.
func IsTombstone(data []byte) bool { return tombstoneKind().Is(data) }

// EncodeTombstone returns the record of t.
func EncodeTombstone(t Tombstone) ([]byte, error) {
	t.Reason = cut(t.Reason)
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("tombstone %s@%d: %w", t.Cluster, t.Epoch, err)
	}
	data, err := encode(tombstoneKind(), t)
	if err != nil {
		return nil, fmt.Errorf("tombstone %s@%d: %w", t.Cluster, t.Epoch, err)
	}
	if back, err := DecodeTombstone(data); err != nil || back != t {
		return nil, fmt.Errorf("tombstone %s@%d: %w", t.Cluster, t.Epoch, errors.Join(errors.New("reads back differently"), err))
	}
	return data, nil
}

// DecodeTombstone reads the record of a tombstone.
//
// On error: damage, or frame.ErrNewerFormat.
func DecodeTombstone(data []byte) (Tombstone, error) {
	body, err := tombstoneKind().Decode(data)
	if err != nil {
		return Tombstone{}, err
	}
	var t Tombstone
	if err := json.Unmarshal(body, &t); err != nil {
		return Tombstone{}, damage.New("tombstone", err)
	}
	if err := t.Validate(); err != nil {
		return Tombstone{}, damage.New("tombstone", err)
	}
	return t, nil
}

func encode(kind frame.Kind, v any) ([]byte, error) {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return kind.Encode(bytes.TrimSuffix(body.Bytes(), []byte("\n")))
}
