package repository

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/manifest"
	"fermata/imageio/pack"
)

// KnownDamage is what verifications have found wrong with a checkpoint. It stays in the
// repository until one that reads all of the checkpoint finds it whole.
type KnownDamage struct {
	Found  time.Time // when it was found last
	Damage []Damage  // what costs guests, in order of Object; those without Guests cost the whole checkpoint
	More   int       // that there was no room for
}

// String is a line for people.
func (k *KnownDamage) String() string {
	guests := map[string]bool{}
	whole := k.More > 0
	for _, d := range k.Damage {
		whole = whole || len(d.Guests) == 0
		for _, g := range d.Guests {
			guests[g] = true
		}
	}
	costs := "the whole checkpoint"
	if !whole {
		costs = fmt.Sprintf("guests %s", joinSome(slices.Sorted(maps.Keys(guests)), 8))
	}
	return fmt.Sprintf("damage found on %s costs %s: %s: %s", k.Found.UTC().Format(time.DateTime+" UTC"), costs, k.Damage[0].Object, k.Damage[0].Reason)
}

// joinSome joins the first few of many names.
func joinSome(names []string, few int) string {
	out := ""
	for i, n := range names {
		if i == few {
			return fmt.Sprintf("%s and %d more", out, len(names)-few)
		}
		if i > 0 {
			out += ", "
		}
		out += n
	}
	return out
}

// damageRecord is the body of the file that says so.
type damageRecord struct {
	Cluster string           `json:"cluster"`
	Epoch   uint64           `json:"epoch"`
	Found   int64            `json:"found_unix_ns"`
	Damage  []recordedDamage `json:"damage"`
	More    int              `json:"more,omitempty"`
}

type recordedDamage struct {
	Object string   `json:"object"`
	Reason string   `json:"reason"`
	Guests []string `json:"guests,omitempty"`
}

const (
	// maxRecorded is how many damaged objects a record names: who wants all verifies.
	maxRecorded = 64
	// maxDamageBody has room for those with a thousand guests each.
	maxDamageBody = 8 << 20
	// maxRecordedReason cuts reasons that go on for ever.
	maxRecordedReason = 1 << 10
)

func damageKind() frame.Kind {
	return frame.Kind{Name: "damage record", Magic: [8]byte{'F', 'M', 'D', 'A', 'M', 'A', 'G', 'E'}, Version: 1, MaxBody: maxDamageBody}
}

// damageContext is what a damage record is named and sealed for.
func damageContext(e epochKey) string { return "damage of " + e.String() }

func (r *Repository) damageRecordPath(e epochKey) string {
	return filepath.Join(r.clusterDir(e.cluster), fmt.Sprintf("%0*d%s", epochDigits, e.epoch, damageSuffix))
}

// KnownDamage returns what is known to be wrong with a checkpoint, nil for nothing. A
// record that cannot be understood counts as damage of the whole checkpoint until the
// checkpoint is verified again.
//
// On error: what the file system said.
func (r *Repository) KnownDamage(_ context.Context, cluster string, epoch uint64) (*KnownDamage, error) {
	if err := manifest.ValidCluster(cluster); err != nil {
		return nil, err
	}
	e := epochKey{cluster, epoch}
	data, err := r.readRecord(r.damageRecordPath(e), damageContext(e), damageKind().MaxLen())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var k *KnownDamage
	if err == nil {
		k, err = decodeDamage(e, data)
	}
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNewerFormat) {
		return &KnownDamage{Damage: []Damage{{Object: damageContext(e), Reason: reasonOf(err)}}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", damageContext(e), err)
	}
	return k, nil
}

// decodeDamage reads a record.
//
// On error: damage, or ErrNewerFormat.
func decodeDamage(e epochKey, data []byte) (*KnownDamage, error) {
	body, err := damageKind().Decode(data)
	if err != nil {
		return nil, err
	}
	var rec damageRecord
	if err := json.Unmarshal(body, &rec); err != nil {
		return nil, damage.New(damageKind().Name, err)
	}
	if (epochKey{rec.Cluster, rec.Epoch}) != e {
		return nil, damage.New(damageKind().Name, fmt.Errorf("is of %s@%d", rec.Cluster, rec.Epoch))
	}
	if len(rec.Damage) == 0 || len(rec.Damage) > maxRecorded || rec.More < 0 {
		return nil, damage.New(damageKind().Name, fmt.Errorf("%d objects and %d more", len(rec.Damage), rec.More))
	}
	k := &KnownDamage{Found: time.Unix(0, rec.Found), More: rec.More}
	for _, d := range rec.Damage {
		k.Damage = append(k.Damage, Damage(d))
	}
	return k, nil
}

// record makes durable what a verification of a checkpoint has found. found is what
// costs guests. all says that every byte of the checkpoint was read: then nothing else is
// wrong with it, and what was known before is forgotten.
func (r *Repository) record(ctx context.Context, e epochKey, found []Damage, all bool) error {
	before, err := r.KnownDamage(ctx, e.cluster, e.epoch)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if before == nil || !all {
			return nil
		}
		if err := r.fs.Remove(r.damageRecordPath(e)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return r.fs.SyncDir(r.clusterDir(e.cluster))
	}
	now := &KnownDamage{Damage: slices.Clone(found)}
	if before != nil && !all {
		for _, d := range before.Damage {
			if !slices.ContainsFunc(found, func(f Damage) bool { return f.Object == d.Object }) {
				now.Damage = append(now.Damage, d)
			}
		}
		now.More = before.More
	}
	slices.SortFunc(now.Damage, func(a, b Damage) int { return cmp.Compare(a.Object, b.Object) })
	if n := len(now.Damage) - maxRecorded; n > 0 {
		now.Damage, now.More = now.Damage[:maxRecorded], now.More+n
	}
	for i := range now.Damage {
		if d := &now.Damage[i]; len(d.Reason) > maxRecordedReason {
			d.Reason = d.Reason[:maxRecordedReason]
		}
	}
	if before != nil && before.More == now.More && slices.EqualFunc(before.Damage, now.Damage, sameDamage) {
		return nil // a night's check does not write what is known
	}
	return r.writeDamage(e, now)
}

func sameDamage(a, b Damage) bool {
	return a.Object == b.Object && a.Reason == b.Reason && slices.Equal(a.Guests, b.Guests)
}

func (r *Repository) writeDamage(e epochKey, k *KnownDamage) error {
	rec := damageRecord{Cluster: e.cluster, Epoch: e.epoch, Found: time.Now().UnixNano(), More: k.More}
	for _, d := range k.Damage {
		rec.Damage = append(rec.Damage, recordedDamage(d))
	}
	body, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	data, err := damageKind().Encode(body)
	if err == nil {
		data, err = sealRecord(r.domain, damageContext(e), data)
	}
	if err != nil {
		return err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return err
	}
	temp := fmt.Sprintf(".%0*d.%s%s", epochDigits, e.epoch, token, tempSuffix)
	return r.writeNamed(filepath.Join(r.clusterDir(e.cluster), temp), r.damageRecordPath(e), data)
}

// costly is the damage that costs guests.
func costly(all []Damage) []Damage {
	return slices.DeleteFunc(slices.Clone(all), func(d Damage) bool { return len(d.Guests) == 0 })
}

// spread records what damage of packs costs the other checkpoints that name them. known
// is what was read of those packs.
func (r *Repository) spread(ctx context.Context, from *manifest.Manifest, known scans) error {
	sick := map[pack.ID]bool{}
	for id, s := range known {
		if s.err != nil || len(s.bad) > 0 {
			sick[id] = true
		}
	}
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, cluster := range clusters {
		entries, err := r.Checkpoints(ctx, cluster)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Err != nil || cluster == from.Cluster && e.Epoch == from.Epoch {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			errs = append(errs, r.spreadTo(ctx, e.Manifest, sick, known))
		}
	}
	return errors.Join(errs...)
}

// spreadTo records what damage of packs costs one checkpoint.
func (r *Repository) spreadTo(ctx context.Context, m *manifest.Manifest, sick map[pack.ID]bool, known scans) error {
	ids, err := packIDsOf(m.Packs)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(ids, func(id pack.ID) bool {
		actual, _, _ := r.followPack(id)
		return sick[id] || sick[actual]
	}) {
		return nil
	}
	report, err := r.verify(ctx, m, VerifyOptions{}, maps.Clone(known), func(pack.ID) bool { return false })
	if err != nil {
		return err
	}
	return r.record(ctx, epochKey{m.Cluster, m.Epoch}, costly(report.Damage), false)
}
