// Package record translates between what nodes and operators say of a
// checkpoint (protocol/api) and its commit record in the repository
// (imageio/manifest). Everything an operator is told when a checkpoint is taken
// is in the manifest, so that the same is told years later from the repository
// alone.
//
// It computes and checks; it reads and writes nothing.
package record

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// Names of the times in manifest.Stats.TimingsUS.
const (
	timingSkew    = "skew"
	timingResumed = "resumed"
	timingDurable = "durable"
)

// Taken is everything that goes into the manifest of a new checkpoint.
type Taken struct {
	Cluster string
	Epoch   uint64
	Label   string
	Spec    []byte // canonical YAML
	Fence   *api.Fence
	Images  []*api.NodeImage // of every member, each checked by CheckImage

	ChannelsRecorded bool
	Cut              round.Cut
	Networks         []string // of the fabric
	Bypassed         []string // that are bridges of the nodes
	OffFabric        []string // guests on networks of their own

	Begun   time.Time // the operator's request
	Resumed time.Time // all guests ran again
}

// summary is the opaque report of a manifest.
type summary struct {
	FramesRecorded uint64 `json:"frames_recorded"`
	QEMUVersion    string `json:"qemu_version"`
	Cut            string `json:"cut"`
}

// networks is what a manifest says of the cluster's networks.
type networks struct {
	Recorded  []string `json:"recorded"`             // their frames in flight are part of the checkpoint
	Bypassed  []string `json:"bypassed,omitempty"`   // theirs are not: they are bridges of the nodes
	OffFabric []string `json:"off_fabric,omitempty"` // guests with networks of their own, of which nothing is
}

// Manifest makes the commit record, but for SetDurable.
func Manifest(t Taken) (*manifest.Manifest, error) {
	m := &manifest.Manifest{
		Cluster: t.Cluster, Epoch: t.Epoch, CreatedUnixNS: t.Begun.UnixNano(), Label: t.Label, Spec: t.Spec,
		FenceToken: t.Fence.GetToken(), ChannelsRecorded: t.ChannelsRecorded,
		Stats: manifest.Stats{TimingsUS: map[string]uint64{
			timingResumed: micros(t.Resumed.Sub(t.Begun)),
		}},
	}
	sum := summary{Cut: t.Cut.String()}
	var stops []int64
	var versions []string
	for _, image := range t.Images {
		m.Packs = append(m.Packs, image.GetPacks()...)
		m.Stats.StoredBytes += image.GetStoredBytes()
		m.Stats.NewBytes += image.GetNewUniqueBytes()
		versions = append(versions, image.GetQemuVersion())
		for _, g := range image.GetGuests() {
			report := reportOf(image, g.GetGuest())
			m.Stats.RawBytes += report.GetRawBytes()
			m.Stats.NonZeroBytes += report.GetNonZeroBytes()
			sum.FramesRecorded += report.GetFramesRecorded()
			stops = append(stops, report.GetStoppedUnixNs())
			guest, err := guestOf(image.GetNode(), g, report)
			if err != nil {
				return nil, fmt.Errorf("guest %s: %w", g.GetGuest(), err)
			}
			m.Guests = append(m.Guests, guest)
		}
	}
	m.Stats.TimingsUS[timingSkew] = skew(stops)
	slices.SortFunc(m.Guests, func(a, b manifest.Guest) int { return cmp.Compare(a.Name, b.Name) })
	m.Packs = sortedSet(m.Packs)
	sum.QEMUVersion = strings.Join(sortedSet(versions), ", ")
	nets := networks{OffFabric: t.OffFabric, Bypassed: t.Bypassed}
	if t.ChannelsRecorded {
		nets.Recorded = t.Networks
	}
	var err error
	if m.Networks, err = json.Marshal(nets); err != nil {
		return nil, fmt.Errorf("encode networks: %w", err)
	}
	if m.Report, err = json.Marshal(sum); err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return m, nil
}

// SetDurable notes how long it took from the operator's request until
// everything but the manifest itself was durable. The manifest is one small
// file, and cannot hold the time of its own end.
func SetDurable(m *manifest.Manifest, d time.Duration) {
	m.Stats.TimingsUS[timingDurable] = micros(d)
}

// Skew is how far apart the guests of a checkpoint were cut.
func Skew(m *manifest.Manifest) time.Duration {
	return time.Duration(m.Stats.TimingsUS[timingSkew]) * time.Microsecond
}

// skew is how far the guests' stops are apart. The instants are those of the
// nodes' clocks: across nodes the figure is as good as their synchronisation.
func skew(stops []int64) uint64 {
	if len(stops) == 0 {
		return 0
	}
	return micros(time.Duration(slices.Max(stops) - slices.Min(stops)))
}

func micros(d time.Duration) uint64 { return uint64(max(d, 0).Microseconds()) }

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

func guestOf(node string, g *api.GuestImage, report *api.GuestReport) (manifest.Guest, error) {
	out := manifest.Guest{Name: g.GetGuest(), Node: node, Machine: g.GetMachine()}
	for _, o := range g.GetObjects() {
		id, err := idOf(o)
		if err != nil {
			return out, err
		}
		out.Objects = append(out.Objects, manifest.Object{
			Kind: manifest.Kind(o.GetKind()), Name: o.GetName(), ID: id, SizeBytes: o.GetSizeBytes(), Count: o.GetCount(),
		})
	}
	for _, f := range g.GetFiles() {
		out.Files = append(out.Files, manifest.File{
			Disk: f.GetDisk(), Path: f.GetPath(), SizeBytes: f.GetSizeBytes(), ModifiedUnixNS: f.GetModifiedUnixNs(), SHA256: hex.EncodeToString(f.GetSha256()),
		})
	}
	for _, r := range g.GetConfidential() {
		out.Confidential = append(out.Confidential, manifest.Range{Start: r.GetStart(), Bytes: r.GetBytes()})
	}
	var err error
	out.Report, err = encodeReport(report)
	return out, err
}

func idOf(o *api.ImageObject) (object.ID, error) {
	var id object.ID
	if len(o.GetId()) != len(id) {
		return id, fmt.Errorf("%s %q: identity of %d bytes, want %d", o.GetKind(), o.GetName(), len(o.GetId()), len(id))
	}
	copy(id[:], o.GetId())
	return id, nil
}

// CheckImage tells what is wrong with a node's part of a checkpoint: the guests
// must be exactly those that the node has, each with a report.
func CheckImage(image *api.NodeImage, guests []string) error {
	var errs []error
	want := make(map[string]bool, len(guests))
	for _, g := range guests {
		want[g] = true
	}
	for _, g := range image.GetGuests() {
		name := g.GetGuest()
		if !want[name] {
			errs = append(errs, fmt.Errorf("guest %q: not one of the node's, or twice", name))
			continue
		}
		delete(want, name)
		if reportOf(image, name) == nil {
			errs = append(errs, fmt.Errorf("guest %s: no report", name))
			continue
		}
		if len(g.GetObjects()) == 0 {
			errs = append(errs, fmt.Errorf("guest %s: empty", name))
		}
		for _, f := range g.GetFiles() {
			if len(f.GetSha256()) != sha256.Size {
				errs = append(errs, fmt.Errorf("guest %s: %s: SHA-256 of %d bytes", name, f.GetPath(), len(f.GetSha256())))
			}
		}
		if !json.Valid(g.GetMachine()) {
			errs = append(errs, fmt.Errorf("guest %s: description of the machine is no JSON", name))
		}
		for _, o := range g.GetObjects() {
			if _, err := idOf(o); err != nil {
				errs = append(errs, fmt.Errorf("guest %s: %w", name, err))
			}
		}
	}
	for name := range want {
		errs = append(errs, fmt.Errorf("guest %s: missing", name))
	}
	return errors.Join(errs...)
}

func reportOf(image *api.NodeImage, guest string) *api.GuestReport {
	for _, r := range image.GetReports() {
		if r.GetName() == guest {
			return r
		}
	}
	return nil
}

// Contents lists the objects of all images of the given kinds.
func Contents(m *manifest.Manifest, kinds ...manifest.Kind) []manifest.Object {
	var objects []manifest.Object
	for _, g := range m.Guests {
		for _, o := range g.Objects {
			if slices.Contains(kinds, o.Kind) {
				objects = append(objects, o)
			}
		}
	}
	return objects
}

// Image is what a node needs to restore a guest.
func Image(g manifest.Guest) *api.GuestImage {
	image := &api.GuestImage{Guest: g.Name, Machine: g.Machine}
	for _, o := range g.Objects {
		image.Objects = append(image.Objects, &api.ImageObject{
			Kind: string(o.Kind), Name: o.Name, Id: slices.Clone(o.ID[:]), SizeBytes: o.SizeBytes, Count: o.Count,
		})
	}
	for _, r := range g.Confidential {
		image.Confidential = append(image.Confidential, &api.MemoryRange{Start: r.Start, Bytes: r.Bytes})
	}
	for _, f := range g.Files {
		sum, err := hex.DecodeString(f.SHA256)
		if err != nil {
			sum = nil // which no file has; a manifest that was decoded has none of these
		}
		image.Files = append(image.Files, &api.BaseFile{
			Disk: f.Disk, Path: f.Path, SizeBytes: f.SizeBytes, ModifiedUnixNs: f.ModifiedUnixNS, Sha256: sum,
		})
	}
	return image
}
