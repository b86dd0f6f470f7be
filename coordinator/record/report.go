package record

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	"fermata/imageio/manifest"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// encodeReport makes the opaque report of a guest in a manifest. Fields may be
// added; absent ones read as zero, and unknown ones are passed over.
func encodeReport(r *api.GuestReport) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r)
	var compact bytes.Buffer
	if err == nil {
		err = json.Compact(&compact, b) // protojson spaces its output at random
	}
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return compact.Bytes(), nil
}

func decodeReport(g manifest.Guest) (*api.GuestReport, error) {
	r := &api.GuestReport{}
	if len(g.Report) > 0 {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(g.Report, r); err != nil {
			return nil, fmt.Errorf("report of guest %s: %w", g.Name, err)
		}
	}
	r.Name, r.Node = g.Name, g.Node
	return r, nil
}

// Checkpoint is what an operator is told of a committed checkpoint.
func Checkpoint(m *manifest.Manifest) (*api.Checkpoint, error) {
	var sum summary
	if len(m.Report) > 0 {
		if err := json.Unmarshal(m.Report, &sum); err != nil {
			return nil, fmt.Errorf("report of %s: %w", ID(m.Cluster, m.Epoch), err)
		}
	}
	var nets networks
	if len(m.Networks) > 0 {
		if err := json.Unmarshal(m.Networks, &nets); err != nil {
			return nil, fmt.Errorf("networks of %s: %w", ID(m.Cluster, m.Epoch), err)
		}
	}
	var cut round.Cut
	if sum.Cut != "" {
		var err error
		if cut, err = round.ParseCut(sum.Cut); err != nil {
			return nil, fmt.Errorf("report of %s: %w", ID(m.Cluster, m.Epoch), err)
		}
	}
	c := &api.Checkpoint{
		Id: ID(m.Cluster, m.Epoch), Cluster: m.Cluster, Epoch: m.Epoch, Label: m.Label, CreatedUnixNs: m.CreatedUnixNS,
		SkewUs: m.Stats.TimingsUS[timingSkew], ResumedUs: m.Stats.TimingsUS[timingResumed], DurableUs: m.Stats.TimingsUS[timingDurable],
		RawBytes: m.Stats.RawBytes, NonZeroBytes: m.Stats.NonZeroBytes, NewBytes: m.Stats.NewBytes, StoredBytes: m.Stats.StoredBytes,
		FramesRecorded: sum.FramesRecorded, ChannelsRecorded: m.ChannelsRecorded, QemuVersion: sum.QEMUVersion, Cut: api.Cut(cut),
		Networks: nets.Recorded, OffFabric: nets.OffFabric, Bypassed: nets.Bypassed,
	}
	for _, g := range m.Guests {
		r, err := decodeReport(g)
		if err != nil {
			return nil, err
		}
		c.Guests = append(c.Guests, r)
		c.TakenBytes += r.GetTakenBytes()
		c.FramesDiscarded += r.GetFramesDiscarded()
	}
	return c, nil
}

// ID is the name of a checkpoint: CLUSTER@EPOCH.
func ID(cluster string, epoch uint64) string {
	return round.ID{Cluster: cluster, Epoch: round.Epoch(epoch)}.String()
}
