package view

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// Checkpoints is the document of "checkpoints list".
type Checkpoints struct {
	Checkpoints []Checkpoint `json:"checkpoints"`
}

// Checkpoint is the document of "checkpoints show" and "checkpoint".
type Checkpoint struct {
	ID               string      `json:"id"`
	Cluster          string      `json:"cluster"`
	Epoch            uint64      `json:"epoch"`
	Label            string      `json:"label"`
	Created          Instant     `json:"created"`
	QEMUVersion      string      `json:"qemu_version"`
	Cut              string      `json:"cut"`                     // coloured or barrier
	MaxPauseMS       float64     `json:"max_pause_ms"`            // the longest pause of a guest
	MaxSilentMS      float64     `json:"max_silent_ms,omitempty"` // the longest time in which a guest took no frames; contains its pause
	SkewMS           float64     `json:"skew_ms"`
	ResumedMS        float64     `json:"resumed_ms"` // from the request until all guests ran again
	DurableMS        float64     `json:"durable_ms"` // from the request until the commit
	RawBytes         uint64      `json:"raw_bytes"`
	NonZeroBytes     uint64      `json:"non_zero_bytes"`
	UniqueBytes      uint64      `json:"unique_bytes,omitempty"` // distinct pages, where they were counted
	NewBytes         uint64      `json:"new_bytes"`              // pages stored for the first time
	StoredBytes      uint64      `json:"stored_bytes"`
	FramesRecorded   uint64      `json:"frames_recorded"`
	ChannelsRecorded bool        `json:"channels_recorded"`
	Networks         []string    `json:"networks"`         // whose frames in flight are part of the checkpoint
	Bypassed         []string    `json:"bypassed"`         // whose are not: bridges of the nodes
	OffFabric        []string    `json:"off_fabric"`       // guests with networks of their own, of which nothing is
	FramesDiscarded  uint64      `json:"frames_discarded"` // in flight, and left out on demand
	TakenBytes       uint64      `json:"taken_bytes"`      // memory that had to be read, of guests captured live
	Damage           string      `json:"damage"`           // why it cannot be restarted; other fields may then be empty
	Guests           []GuestPart `json:"guests"`
}

// GuestPart attributes one guest's part of a checkpoint.
type GuestPart struct {
	Name           string  `json:"name"`
	Node           string  `json:"node"`
	Stopped        Instant `json:"stopped"`
	PauseMS        float64 `json:"pause_ms"`
	SilentMS       float64 `json:"silent_ms,omitempty"` // took no frames, so nobody outside got an answer; contains the pause
	GateMS         float64 `json:"gate_ms"`             // before the pause
	StopMS         float64 `json:"stop_ms"`
	DevicesMS      float64 `json:"devices_ms"`
	MemoryMS       float64 `json:"memory_ms"`
	ChannelsMS     float64 `json:"channels_ms"`
	ResumeMS       float64 `json:"resume_ms"`
	RawBytes       uint64  `json:"raw_bytes"`
	NonZeroBytes   uint64  `json:"non_zero_bytes"`
	FramesRecorded uint64  `json:"frames_recorded"`
	UndrainedNICs  uint32  `json:"undrained_nics"`
	BypassDropped  uint64  `json:"bypass_dropped"` // frames for which its cards on bridges had no room

	ConfidentialBytes uint64 `json:"confidential_bytes"` // memory that was not read: zeros after a restart

	Mode               string `json:"mode"`        // live or stop
	ModeReason         string `json:"mode_reason"` // why not live, where that was not asked for
	Phases             Phases `json:"phases_us"`
	EarlyUS            uint64 `json:"early_us"`     // before the silence: frames of guests that were cut earlier waited
	WaitUS             uint64 `json:"wait_us"`      // of the silence: for a turn among the guests of the node, and what has no phase
	ArmUS              uint64 `json:"arm_us"`       // protecting memory before the pause
	WriteFaults        uint64 `json:"write_faults"` // writes that met memory not yet stored
	LongestWaitUS      uint64 `json:"longest_wait_us"`
	CopiedInPauseBytes uint64 `json:"copied_in_pause_bytes"`
	PeakBufferBytes    uint64 `json:"peak_buffer_bytes"`
	TakenBytes         uint64 `json:"taken_bytes"`
}

// Phases is where the time of a cut went, microseconds. Gate and drain come
// before the pause; the others add up to it.
type Phases struct {
	Gate     uint64 `json:"gate"`
	Drain    uint64 `json:"drain"`
	Stop     uint64 `json:"stop"`
	Devices  uint64 `json:"devices"`
	Rearm    uint64 `json:"rearm"`
	Memory   uint64 `json:"memory"`
	Channels uint64 `json:"channels"`
	Continue uint64 `json:"continue"`
}

// OfCheckpoints makes the document, sorted by cluster and epoch.
func OfCheckpoints(m *api.ListCheckpointsReply) Checkpoints {
	views := collect(m.GetCheckpoints(), OfCheckpoint, func(c Checkpoint) string { return c.Cluster })
	slices.SortStableFunc(views, func(a, b Checkpoint) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Epoch, b.Epoch))
	})
	return Checkpoints{views}
}

// OfCheckpoint makes the document.
func OfCheckpoint(m *api.Checkpoint) Checkpoint {
	c := Checkpoint{
		ID: m.GetId(), Cluster: m.GetCluster(), Epoch: m.GetEpoch(), Label: m.GetLabel(),
		Created:     instant(m.GetCreatedUnixNs()),
		QEMUVersion: m.GetQemuVersion(),
		Cut:         round.Cut(m.GetCut()).String(),
		SkewMS:      millis(m.GetSkewUs()), ResumedMS: millis(m.GetResumedUs()), DurableMS: millis(m.GetDurableUs()),
		RawBytes: m.GetRawBytes(), NonZeroBytes: m.GetNonZeroBytes(),
		UniqueBytes: m.GetUniqueBytes(), NewBytes: m.GetNewBytes(), StoredBytes: m.GetStoredBytes(),
		FramesRecorded: m.GetFramesRecorded(), ChannelsRecorded: m.GetChannelsRecorded(), Damage: m.GetDamage(),
		Networks: append([]string{}, m.GetNetworks()...), Bypassed: append([]string{}, m.GetBypassed()...), OffFabric: append([]string{}, m.GetOffFabric()...),
		FramesDiscarded: m.GetFramesDiscarded(), TakenBytes: m.GetTakenBytes(),
		Guests: collect(m.GetGuests(), ofGuestReport, func(g GuestPart) string { return g.Name }),
	}
	for _, g := range c.Guests {
		c.MaxPauseMS, c.MaxSilentMS = max(c.MaxPauseMS, g.PauseMS), max(c.MaxSilentMS, g.SilentMS)
	}
	return c
}

func ofGuestReport(m *api.GuestReport) GuestPart {
	return GuestPart{
		Name: m.GetName(), Node: m.GetNode(), Stopped: instant(m.GetStoppedUnixNs()),
		PauseMS: millis(m.GetPauseUs()), SilentMS: millis(m.GetSilentUs()), GateMS: millis(m.GetGateUs()), StopMS: millis(m.GetStopUs()),
		DevicesMS: millis(m.GetDevicesUs()), MemoryMS: millis(m.GetMemoryUs()),
		ChannelsMS: millis(m.GetChannelsUs()), ResumeMS: millis(m.GetResumeUs()),
		RawBytes: m.GetRawBytes(), NonZeroBytes: m.GetNonZeroBytes(),
		FramesRecorded: m.GetFramesRecorded(), UndrainedNICs: m.GetUndrainedNics(), BypassDropped: m.GetBypassDropped(),
		ConfidentialBytes: m.GetConfidentialBytes(),
		Mode:              m.GetMode(), ModeReason: m.GetModeReason(),
		Phases: Phases{
			Gate: m.GetGateUs(), Drain: m.GetDrainUs(), Stop: m.GetStopUs(), Devices: m.GetDevicesUs(), Rearm: m.GetProtectUs(),
			Memory: m.GetMemoryUs(), Channels: m.GetChannelsUs(), Continue: m.GetResumeUs(),
		},
		EarlyUS: m.GetEarlyUs(), WaitUS: m.GetWaitUs(),
		ArmUS: m.GetArmUs(), WriteFaults: m.GetWriteFaults(), LongestWaitUS: m.GetLongestWaitUs(),
		CopiedInPauseBytes: m.GetCopiedInPauseBytes(), PeakBufferBytes: m.GetPeakBufferBytes(), TakenBytes: m.GetTakenBytes(),
	}
}

// WriteTable writes one line a checkpoint.
func (d Checkpoints) WriteTable(w io.Writer) error {
	rows := render.NewRows("ID", "CREATED", "GUESTS", "PAUSE ms", "SILENT ms", "SKEW ms", "DURABLE ms", "DATA", "STORED", "FRAMES", "LABEL", "DAMAGE")
	for _, c := range d.Checkpoints {
		rows.Add(c.ID, render.Time(c.Created.Time), len(c.Guests), render.Millis(c.MaxPauseMS), silence(c.MaxSilentMS), render.Millis(c.SkewMS),
			render.Millis(c.DurableMS), render.Bytes(c.NonZeroBytes), render.Bytes(c.StoredBytes), c.FramesRecorded, c.Label, c.Damage)
	}
	return rows.Write(w)
}

// WriteTable writes the checkpoint and where each guest's pause went; of a
// damaged one, what is wrong with it.
func (c Checkpoint) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("checkpoint", c.ID)
	f.Add("label", c.Label)
	f.Add("created", render.Time(c.Created.Time))
	if c.Damage != "" {
		f.Add("damage", c.Damage)
		return f.Write(w)
	}
	f.Add("qemu", c.QEMUVersion)
	f.Add("pause", fmt.Sprintf("%s ms at most, %s cut, skew %s ms", render.Millis(c.MaxPauseMS), c.Cut, render.Millis(c.SkewMS)))
	if c.MaxSilentMS > 0 {
		f.Add("silent", render.Millis(c.MaxSilentMS)+" ms at most: how long a guest gave no answer, its pause included")
	}
	f.Add("resumed", render.Millis(c.ResumedMS)+" ms after the request")
	f.Add("durable", render.Millis(c.DurableMS)+" ms after the request")
	distinct := ""
	if c.UniqueBytes > 0 {
		distinct = render.Bytes(c.UniqueBytes) + " distinct, "
	}
	f.Add("data", fmt.Sprintf("%s of %s not zero, %s%s new, %s stored",
		render.Bytes(c.NonZeroBytes), render.Bytes(c.RawBytes), distinct, render.Bytes(c.NewBytes), render.Bytes(c.StoredBytes)))
	if c.ChannelsRecorded {
		channels := fmt.Sprintf("%d frames recorded", c.FramesRecorded)
		if len(c.Networks) > 0 {
			channels += ", networks " + strings.Join(c.Networks, ", ")
		}
		f.Add("channels", channels)
	} else {
		f.Add("channels", fmt.Sprintf("%d frames discarded: a restart loses what was on the wire", c.FramesDiscarded))
	}
	if len(c.Bypassed) > 0 {
		var dropped uint64
		for _, g := range c.Guests {
			dropped += g.BypassDropped
		}
		f.Add("bypassed", fmt.Sprintf("networks %s: what was in flight on these bridges is not recorded, %d frames found no room meanwhile", strings.Join(c.Bypassed, ", "), dropped))
	}
	if len(c.OffFabric) > 0 {
		f.Add("off fabric", strings.Join(c.OffFabric, ", ")+": what was in flight on their own networks is not recorded")
	}
	for _, g := range c.Guests {
		if g.ConfidentialBytes > 0 {
			f.Add("guest "+g.Name, render.Bytes(g.ConfidentialBytes)+" of memory are confidential: not read, zeros after a restart")
		}
		if g.ModeReason != "" {
			f.Add("guest "+g.Name, "not captured live: "+g.ModeReason)
		}
	}
	if err := f.Write(w); err != nil {
		return err
	}
	if len(c.Guests) == 0 {
		return nil
	}
	rows := render.NewRows("GUEST", "NODE", "MODE", "SILENT ms", "PAUSE ms", "EARLY", "GATE", "DRAIN", "WAIT", "STOP", "DEVICES", "REARM", "MEMORY", "CHANNELS", "CONTINUE", "READ", "WAITED", "DATA", "FRAMES", "UNDRAINED")
	for _, g := range c.Guests {
		p := g.Phases
		rows.Add(g.Name, g.Node, g.Mode, silence(g.SilentMS), render.Millis(g.PauseMS),
			render.Millis(millis(g.EarlyUS)), render.Millis(millis(p.Gate)), render.Millis(millis(p.Drain)), render.Millis(millis(g.WaitUS)),
			render.Millis(millis(p.Stop)), render.Millis(millis(p.Devices)), render.Millis(millis(p.Rearm)), render.Millis(millis(p.Memory)),
			render.Millis(millis(p.Channels)), render.Millis(millis(p.Continue)), render.Bytes(g.TakenBytes), render.Millis(millis(g.LongestWaitUS)),
			render.Bytes(g.NonZeroBytes), g.FramesRecorded, g.UndrainedNICs)
	}
	return section(w, rows)
}

// silence is empty where it was not measured: in checkpoints of earlier versions.
func silence(ms float64) string {
	if ms == 0 {
		return ""
	}
	return render.Millis(ms)
}

// Verification is the document of "checkpoints verify".
type Verification struct {
	CheckpointID  string   `json:"checkpoint_id"`
	Intact        bool     `json:"intact"`
	VerifiedBytes uint64   `json:"verified_bytes"`
	Damage        []Damage `json:"damage"`
	Unrecorded    string   `json:"unrecorded,omitempty"` // why the repository could not be told of it
}

// Damage is one damaged object of the repository and whom it hits.
type Damage struct {
	Object string   `json:"object"`
	Reason string   `json:"reason"`
	Guests []string `json:"guests"`
}

// OfVerifyReport makes the document.
func OfVerifyReport(m *api.VerifyReport) Verification {
	return Verification{
		CheckpointID:  m.GetCheckpointId(),
		Intact:        len(m.GetDamage()) == 0,
		VerifiedBytes: m.GetBytes(),
		Unrecorded:    m.GetUnrecorded(),
		Damage: collect(m.GetDamage(), func(d *api.Damage) Damage {
			guests := list(d.GetGuests())
			slices.Sort(guests)
			return Damage{Object: d.GetObject(), Reason: d.GetReason(), Guests: guests}
		}, func(d Damage) string { return d.Object }),
	}
}

// WriteTable writes the verdict and what is damaged.
func (d Verification) WriteTable(w io.Writer) error {
	if d.Intact {
		_, err := fmt.Fprintf(w, "%s is intact, %s verified\n", d.CheckpointID, render.Bytes(d.VerifiedBytes))
		return err
	}
	if _, err := fmt.Fprintf(w, "%s is damaged, %s verified\n", d.CheckpointID, render.Bytes(d.VerifiedBytes)); err != nil {
		return err
	}
	if d.Unrecorded != "" {
		if _, err := fmt.Fprintf(w, "not recorded in the repository: %s\n", d.Unrecorded); err != nil {
			return err
		}
	}
	rows := render.NewRows("OBJECT", "GUESTS", "REASON")
	for _, x := range d.Damage {
		rows.Add(x.Object, joined(x.Guests), x.Reason)
	}
	return section(w, rows)
}
