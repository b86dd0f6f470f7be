package record

import (
	"encoding/json"
	"fmt"

	"fermata/imageio/manifest"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// guestReport is the opaque report of a guest in a manifest. Fields may be
// added; absent ones read as zero.
type guestReport struct {
	PauseUS        uint64 `json:"pause_us"`
	GateUS         uint64 `json:"gate_us"`
	StopUS         uint64 `json:"stop_us"`
	DevicesUS      uint64 `json:"devices_us"`
	MemoryUS       uint64 `json:"memory_us"`
	ChannelsUS     uint64 `json:"channels_us"`
	ResumeUS       uint64 `json:"resume_us"`
	StoppedUnixNS  int64  `json:"stopped_unix_ns"`
	RawBytes       uint64 `json:"raw_bytes"`
	NonZeroBytes   uint64 `json:"non_zero_bytes"`
	FramesRecorded uint64 `json:"frames_recorded"`
	UndrainedNICs  uint32 `json:"undrained_nics"`
}

func encodeReport(r *api.GuestReport) (json.RawMessage, error) {
	b, err := json.Marshal(guestReport{
		PauseUS: r.GetPauseUs(), GateUS: r.GetGateUs(), StopUS: r.GetStopUs(), DevicesUS: r.GetDevicesUs(),
		MemoryUS: r.GetMemoryUs(), ChannelsUS: r.GetChannelsUs(), ResumeUS: r.GetResumeUs(),
		StoppedUnixNS: r.GetStoppedUnixNs(), RawBytes: r.GetRawBytes(), NonZeroBytes: r.GetNonZeroBytes(),
		FramesRecorded: r.GetFramesRecorded(), UndrainedNICs: r.GetUndrainedNics(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return b, nil
}

func decodeReport(g manifest.Guest) (*api.GuestReport, error) {
	var r guestReport
	if len(g.Report) > 0 {
		if err := json.Unmarshal(g.Report, &r); err != nil {
			return nil, fmt.Errorf("report of guest %s: %w", g.Name, err)
		}
	}
	return &api.GuestReport{
		Name: g.Name, Node: g.Node,
		PauseUs: r.PauseUS, GateUs: r.GateUS, StopUs: r.StopUS, DevicesUs: r.DevicesUS,
		MemoryUs: r.MemoryUS, ChannelsUs: r.ChannelsUS, ResumeUs: r.ResumeUS,
		StoppedUnixNs: r.StoppedUnixNS, RawBytes: r.RawBytes, NonZeroBytes: r.NonZeroBytes,
		FramesRecorded: r.FramesRecorded, UndrainedNics: r.UndrainedNICs,
	}, nil
}

// Checkpoint is what an operator is told of a committed checkpoint.
func Checkpoint(m *manifest.Manifest) (*api.Checkpoint, error) {
	var sum summary
	if len(m.Report) > 0 {
		if err := json.Unmarshal(m.Report, &sum); err != nil {
			return nil, fmt.Errorf("report of %s: %w", ID(m.Cluster, m.Epoch), err)
		}
	}
	c := &api.Checkpoint{
		Id: ID(m.Cluster, m.Epoch), Cluster: m.Cluster, Epoch: m.Epoch, Label: m.Label, CreatedUnixNs: m.CreatedUnixNS,
		SkewUs: m.Stats.TimingsUS[timingSkew], ResumedUs: m.Stats.TimingsUS[timingResumed], DurableUs: m.Stats.TimingsUS[timingDurable],
		RawBytes: m.Stats.RawBytes, NonZeroBytes: m.Stats.NonZeroBytes, UniqueBytes: m.Stats.UniqueBytes, StoredBytes: m.Stats.StoredBytes,
		FramesRecorded: sum.FramesRecorded, ChannelsRecorded: m.ChannelsRecorded, QemuVersion: sum.QEMUVersion,
	}
	for _, g := range m.Guests {
		r, err := decodeReport(g)
		if err != nil {
			return nil, err
		}
		c.Guests = append(c.Guests, r)
	}
	return c, nil
}

// ID is the name of a checkpoint: CLUSTER@EPOCH.
func ID(cluster string, epoch uint64) string {
	return round.ID{Cluster: cluster, Epoch: round.Epoch(epoch)}.String()
}
