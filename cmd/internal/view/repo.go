package view

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/imageio/repository"
)

// RepoStats is the document of "repo stats".
type RepoStats struct {
	Packs        int                   `json:"packs"`
	StoredBytes  uint64                `json:"stored_bytes"`
	NeededBytes  uint64                `json:"needed_bytes"` // of packs that a checkpoint or a round in flight needs
	RawBytes     uint64                `json:"raw_bytes"`
	NonZeroBytes uint64                `json:"non_zero_bytes"`
	UniqueBytes  uint64                `json:"unique_bytes"`
	Checkpoints  []RepoCheckpointStats `json:"checkpoints"`
}

// RepoCheckpointStats is what one checkpoint holds.
type RepoCheckpointStats struct {
	ID           string           `json:"id"`
	Created      Instant          `json:"created"`
	Label        string           `json:"label"`
	RawBytes     uint64           `json:"raw_bytes"`
	NonZeroBytes uint64           `json:"non_zero_bytes"`
	UniqueBytes  uint64           `json:"unique_bytes"` // distinct pages of it
	NewBytes     uint64           `json:"new_bytes"`    // distinct pages that none before it in this list has
	StoredBytes  uint64           `json:"stored_bytes"` // added to packs when it was taken
	Damage       string           `json:"damage"`
	Guests       []RepoGuestStats `json:"guests"`
}

// RepoGuestStats is what one guest of a checkpoint holds.
type RepoGuestStats struct {
	Name         string `json:"name"`
	RawBytes     uint64 `json:"raw_bytes"`
	NonZeroBytes uint64 `json:"non_zero_bytes"`
	UniqueBytes  uint64 `json:"unique_bytes"`
	NewBytes     uint64 `json:"new_bytes"`
}

func checkpointName(cluster string, epoch uint64) string {
	return cluster + "@" + strconv.FormatUint(epoch, 10)
}

// OfRepoStats makes the document.
func OfRepoStats(s *repository.Stats) RepoStats {
	d := RepoStats{Packs: s.Packs, StoredBytes: s.StoredBytes, NeededBytes: s.NeededBytes, RawBytes: s.RawBytes,
		NonZeroBytes: s.NonZeroBytes, UniqueBytes: s.UniqueBytes, Checkpoints: []RepoCheckpointStats{}}
	for _, c := range s.Checkpoints {
		v := RepoCheckpointStats{ID: checkpointName(c.Cluster, c.Epoch), Created: Instant{c.Created}, Label: c.Label,
			RawBytes: c.RawBytes, NonZeroBytes: c.NonZeroBytes, UniqueBytes: c.UniqueBytes, NewBytes: c.NewBytes,
			StoredBytes: c.StoredBytes, Guests: []RepoGuestStats{}}
		if c.Err != nil {
			v.Damage = c.Err.Error()
		}
		for _, g := range c.Guests {
			v.Guests = append(v.Guests, RepoGuestStats(g))
		}
		d.Checkpoints = append(d.Checkpoints, v)
	}
	return d
}

// WriteTable writes the sums, and a line for each checkpoint and guest.
func (d RepoStats) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("images", fmt.Sprintf("%s, %s of them not zero, %s distinct", render.Bytes(d.RawBytes), render.Bytes(d.NonZeroBytes), render.Bytes(d.UniqueBytes)))
	f.Add("packs", fmt.Sprintf("%d with %s, %s of them needed", d.Packs, render.Bytes(d.StoredBytes), render.Bytes(d.NeededBytes)))
	if err := f.Write(w); err != nil {
		return err
	}
	if len(d.Checkpoints) == 0 {
		return nil
	}
	rows := render.NewRows("CHECKPOINT", "GUEST", "CREATED", "RAW", "DATA", "DISTINCT", "NEW", "STORED", "LABEL", "DAMAGE")
	for _, c := range d.Checkpoints {
		rows.Add(c.ID, "", render.Time(c.Created.Time), render.Bytes(c.RawBytes), render.Bytes(c.NonZeroBytes), render.Bytes(c.UniqueBytes),
			render.Bytes(c.NewBytes), render.Bytes(c.StoredBytes), c.Label, c.Damage)
		for _, g := range c.Guests {
			rows.Add(c.ID, g.Name, "", render.Bytes(g.RawBytes), render.Bytes(g.NonZeroBytes), render.Bytes(g.UniqueBytes), render.Bytes(g.NewBytes), "", "", "")
		}
	}
	return section(w, rows)
}

// RepoCheck is the document of "repo check".
type RepoCheck struct {
	Intact      bool         `json:"intact"`
	Checkpoints int          `json:"checkpoints"`
	Packs       int          `json:"packs"`
	ReadPacks   int          `json:"read_packs"` // of which every byte was read
	ReadBytes   uint64       `json:"read_bytes"` // uncompressed
	Damage      []RepoDamage `json:"damage"`
	Unrecorded  string       `json:"unrecorded,omitempty"` // why the repository could not be told of it
}

// RepoDamage is one damaged thing and what it costs.
type RepoDamage struct {
	Object string    `json:"object"`
	Reason string    `json:"reason"`
	Hits   []RepoHit `json:"hits"` // none: nothing that a checkpoint needs
}

// RepoHit names a checkpoint and those of its guests that cannot be restored.
type RepoHit struct {
	Checkpoint string   `json:"checkpoint"`
	Guests     []string `json:"guests"` // none: all
}

// OfRepoCheck makes the document.
func OfRepoCheck(r repository.CheckReport) RepoCheck {
	d := RepoCheck{Intact: len(r.Damage) == 0, Checkpoints: r.Checkpoints, Packs: r.Packs, ReadPacks: r.ReadPacks, ReadBytes: r.Bytes, Damage: []RepoDamage{}, Unrecorded: r.Unrecorded}
	for _, x := range r.Damage {
		v := RepoDamage{Object: x.Object, Reason: x.Reason, Hits: []RepoHit{}}
		for _, h := range x.Hits {
			v.Hits = append(v.Hits, RepoHit{checkpointName(h.Cluster, h.Epoch), list(h.Guests)})
		}
		d.Damage = append(d.Damage, v)
	}
	return d
}

// WriteTable writes the verdict and what is damaged.
func (d RepoCheck) WriteTable(w io.Writer) error {
	verdict := "intact"
	if !d.Intact {
		verdict = "damaged"
	}
	_, err := fmt.Fprintf(w, "%s: %d checkpoints in %d packs, %d of them read whole (%s)\n", verdict, d.Checkpoints, d.Packs, d.ReadPacks, render.Bytes(d.ReadBytes))
	if err == nil && d.Unrecorded != "" {
		_, err = fmt.Fprintf(w, "not recorded in the repository: %s\n", d.Unrecorded)
	}
	if err != nil || d.Intact {
		return err
	}
	rows := render.NewRows("OBJECT", "COSTS", "REASON")
	for _, x := range d.Damage {
		var costs []string
		for _, h := range x.Hits {
			cost := h.Checkpoint
			if len(h.Guests) > 0 {
				cost += ":" + strings.Join(h.Guests, "+")
			}
			costs = append(costs, cost)
		}
		rows.Add(x.Object, strings.Join(costs, ","), x.Reason)
	}
	return section(w, rows)
}

// RepoRepair is the document of "repo repair".
type RepoRepair struct {
	Found    RepoCheck `json:"found"`
	Repaired []string  `json:"repaired"` // packs
	Left     RepoCheck `json:"left"`
}

// OfRepoRepair makes the document.
func OfRepoRepair(r repository.RepairReport) RepoRepair {
	return RepoRepair{Found: OfRepoCheck(r.Found), Repaired: list(r.Repaired), Left: OfRepoCheck(r.Left)}
}

// WriteTable writes what was done and what is left.
func (d RepoRepair) WriteTable(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%d damaged objects found, %d packs replaced\n", len(d.Found.Damage), len(d.Repaired)); err != nil {
		return err
	}
	return d.Left.WriteTable(w)
}

// RepoRelease is the document of "repo release".
type RepoRelease struct {
	Installation string  `json:"installation"` // that owned it; empty if its record was unreadable
	Name         string  `json:"name"`
	Since        Instant `json:"since"`
}

// OfOwner makes the document.
func OfOwner(o repository.Owner) RepoRelease {
	return RepoRelease{Installation: o.Installation, Name: o.Name, Since: Instant{o.Since}}
}

// WriteTable writes whose it was.
func (d RepoRelease) WriteTable(w io.Writer) error {
	_, err := fmt.Fprintf(w, "released; it belonged to installation %.16s (%s)\n", d.Installation, d.Name)
	return err
}

// RepoPrune is the document of "repo prune".
type RepoPrune struct {
	DryRun       bool           `json:"dry_run"`
	Checkpoints  []RepoDecision `json:"checkpoints"`
	GarbagePacks int            `json:"garbage_packs"` // planned; of done, see the next
	GarbageBytes uint64         `json:"garbage_bytes"`
	CompactPacks int            `json:"compact_packs"`
	CompactBytes uint64         `json:"compact_bytes"`
	KeepBytes    uint64         `json:"keep_bytes"` // of the packs to compact, about
	InFlight     []string       `json:"in_flight"`  // rounds without an outcome, whose packs stay
	Unknown      []string       `json:"unknown"`    // packs that nothing tells the round of
	NoCompaction string         `json:"no_compaction"`
	Done         *RepoPruneDone `json:"done"` // null for a dry run
}

// RepoDecision is what becomes of one checkpoint.
type RepoDecision struct {
	ID      string  `json:"id"`
	Created Instant `json:"created"`
	Label   string  `json:"label"`
	Keep    bool    `json:"keep"`
	Why     string  `json:"why"`
	Damaged bool    `json:"damaged"` // known damage costs guests of it
}

// RepoPruneDone is what was done.
type RepoPruneDone struct {
	Deleted      int      `json:"deleted"` // checkpoints
	Swept        int      `json:"swept"`   // packs removed whole
	Compacted    int      `json:"compacted"`
	Busy         int      `json:"busy"` // packs that somebody began to need meanwhile
	FreedBytes   uint64   `json:"freed_bytes"`
	WrittenBytes uint64   `json:"written_bytes"`
	Damaged      []string `json:"damaged"`
	NoRoom       string   `json:"no_room,omitempty"` // why compaction ended early
}

// OfRepoPrune makes the document of a plan, and of what came of it if done is not
// nil.
func OfRepoPrune(p *repository.PrunePlan, done *repository.PruneReport) RepoPrune {
	d := RepoPrune{DryRun: done == nil, Checkpoints: []RepoDecision{}, GarbagePacks: p.GarbagePacks, GarbageBytes: p.GarbageBytes,
		CompactPacks: p.CompactPacks, CompactBytes: p.CompactBytes, KeepBytes: p.KeepBytes, InFlight: []string{},
		Unknown: list(p.Unknown), NoCompaction: p.NoCompaction}
	for _, c := range p.Checkpoints {
		d.Checkpoints = append(d.Checkpoints, RepoDecision{ID: checkpointName(c.Cluster, c.Epoch), Created: Instant{c.Created}, Label: c.Label, Keep: c.Keep, Why: c.Why, Damaged: c.Damaged})
	}
	for _, r := range p.InFlight {
		d.InFlight = append(d.InFlight, checkpointName(r.Cluster, r.Epoch))
	}
	if done != nil {
		d.Done = &RepoPruneDone{Deleted: done.Deleted, Swept: done.Swept, Compacted: done.Compacted, Busy: done.Busy,
			FreedBytes: done.FreedBytes, WrittenBytes: done.WrittenBytes, Damaged: list(done.Damaged), NoRoom: done.NoRoom}
	}
	return d
}

// WriteTable writes what becomes of each checkpoint, and the space.
func (d RepoPrune) WriteTable(w io.Writer) error {
	rows := render.NewRows("CHECKPOINT", "CREATED", "VERDICT", "WHY", "LABEL")
	for _, c := range d.Checkpoints {
		verdict := "delete"
		if c.Keep {
			verdict = "keep"
		}
		rows.Add(c.ID, render.Time(c.Created.Time), verdict, c.Why, c.Label)
	}
	if err := rows.Write(w); err != nil {
		return err
	}
	var f render.Fields
	if d.DryRun {
		f.Add("would remove", fmt.Sprintf("%d packs with %s", d.GarbagePacks, render.Bytes(d.GarbageBytes)))
		f.Add("would compact", fmt.Sprintf("%d packs with %s to about %s", d.CompactPacks, render.Bytes(d.CompactBytes), render.Bytes(d.KeepBytes)))
	} else {
		f.Add("deleted", fmt.Sprintf("%d checkpoints", d.Done.Deleted))
		f.Add("removed", fmt.Sprintf("%d packs", d.Done.Swept))
		f.Add("compacted", fmt.Sprintf("%d packs, %s written", d.Done.Compacted, render.Bytes(d.Done.WrittenBytes)))
		f.Add("freed", render.Bytes(d.Done.FreedBytes))
		if d.Done.Busy > 0 {
			f.Add("left", fmt.Sprintf("%d packs that somebody began to need", d.Done.Busy))
		}
		f.Add("damaged", strings.Join(d.Done.Damaged, "; "))
		f.Add("no room", d.Done.NoRoom)
	}
	f.Add("not compacted", d.NoCompaction)
	f.Add("in flight", strings.Join(d.InFlight, ", "))
	f.Add("unknown", strings.Join(d.Unknown, ", "))
	return section(w, &f)
}

// RepoCopies is the document of "repo copy" and "checkpoints import".
type RepoCopies struct {
	Checkpoints []RepoCopy `json:"checkpoints"`
}

// RepoCopy is one checkpoint that was brought to a repository.
type RepoCopy struct {
	ID          string `json:"id"`
	Present     bool   `json:"present"` // it was there already
	NewBytes    uint64 `json:"new_bytes"`
	StoredBytes uint64 `json:"stored_bytes"`
}

// Add appends a checkpoint.
func (d *RepoCopies) Add(cluster string, epoch uint64, r repository.CopyReport) {
	d.Checkpoints = append(d.Checkpoints, RepoCopy{checkpointName(cluster, epoch), r.Present, r.NewBytes, r.StoredBytes})
}

// WriteTable writes one line a checkpoint.
func (d RepoCopies) WriteTable(w io.Writer) error {
	rows := render.NewRows("CHECKPOINT", "WAS THERE", "NEW", "STORED")
	for _, c := range d.Checkpoints {
		rows.Add(c.ID, c.Present, render.Bytes(c.NewBytes), render.Bytes(c.StoredBytes))
	}
	return rows.Write(w)
}

// CheckpointDiff is the document of "checkpoints diff".
type CheckpointDiff struct {
	A      string      `json:"a"`
	B      string      `json:"b"`
	Guests []GuestDiff `json:"guests"` // those that differ
}

// GuestDiff is how one guest differs.
type GuestDiff struct {
	Name         string      `json:"name"`
	State        string      `json:"state"` // changed, added or removed
	ChangedBytes int64       `json:"changed_bytes"`
	Images       []ImageDiff `json:"images"`
}

// ImageDiff is how one image of a guest differs.
type ImageDiff struct {
	Kind         string `json:"kind"`
	Name         string `json:"name"`
	SizeA        int64  `json:"size_a_bytes"`
	SizeB        int64  `json:"size_b_bytes"`
	ChangedBytes int64  `json:"changed_bytes"`
}

// OfDiff makes the document.
func OfDiff(a, b string, diffs []repository.GuestDiff) CheckpointDiff {
	d := CheckpointDiff{A: a, B: b, Guests: []GuestDiff{}}
	for _, g := range diffs {
		v := GuestDiff{Name: g.Guest, State: "changed", Images: []ImageDiff{}}
		switch {
		case g.Added:
			v.State = "added"
		case g.Removed:
			v.State = "removed"
		}
		for _, i := range g.Images {
			v.ChangedBytes += i.ChangedBytes
			v.Images = append(v.Images, ImageDiff{string(i.Kind), i.Name, i.SizeA, i.SizeB, i.ChangedBytes})
		}
		d.Guests = append(d.Guests, v)
	}
	return d
}

// WriteTable writes one line an image that differs.
func (d CheckpointDiff) WriteTable(w io.Writer) error {
	if len(d.Guests) == 0 {
		_, err := fmt.Fprintf(w, "%s and %s hold the same\n", d.A, d.B)
		return err
	}
	rows := render.NewRows("GUEST", "STATE", "KIND", "IMAGE", "SIZE "+d.A, "SIZE "+d.B, "CHANGED")
	for _, g := range d.Guests {
		for _, i := range g.Images {
			rows.Add(g.Name, g.State, i.Kind, i.Name, render.Bytes(i.SizeA), render.Bytes(i.SizeB), render.Bytes(i.ChangedBytes))
		}
	}
	return rows.Write(w)
}

// RepoKeys is the document of the commands on keys.
type RepoKeys struct {
	Keys []RepoKey `json:"keys"`
}

// RepoKey is a key that opens a repository.
type RepoKey struct {
	ID   string `json:"id"`
	Used bool   `json:"used"` // now
}

// OfRepoKeys makes the document.
func OfRepoKeys(ids []string, used string) RepoKeys {
	d := RepoKeys{Keys: []RepoKey{}}
	for _, id := range ids {
		d.Keys = append(d.Keys, RepoKey{ID: id, Used: id == used})
	}
	return d
}

// WriteTable writes a line for each.
func (d RepoKeys) WriteTable(w io.Writer) error {
	if len(d.Keys) == 0 {
		_, err := fmt.Fprintln(w, "not encrypted")
		return err
	}
	rows := render.NewRows("KEY", "USED NOW")
	for _, k := range d.Keys {
		used := "no"
		if k.Used {
			used = "yes"
		}
		rows.Add(k.ID, used)
	}
	return rows.Write(w)
}
