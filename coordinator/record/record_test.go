package record_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"fermata/coordinator/record"
	"fermata/imageio/manifest"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

func image(node string, guests ...string) *api.NodeImage {
	n := &api.NodeImage{Node: node, Packs: []string{strings.Repeat("ab", 16)}, StoredBytes: 100, NewUniqueBytes: 1024, QemuVersion: "7.2.22"}
	for i, g := range guests {
		n.Guests = append(n.Guests, &api.GuestImage{
			Guest: g, Machine: []byte(`{"cpu": "qemu64"}`),
			Objects: []*api.ImageObject{
				{Kind: "memory", Name: "ram", Id: bytes.Repeat([]byte{byte(i + 1)}, 32), SizeBytes: 4096},
				{Kind: "channel", Name: "eth0", Id: bytes.Repeat([]byte{9}, 32), SizeBytes: 64, Count: 2},
			},
			Files: []*api.BaseFile{{Disk: "root", Path: "/srv/root.img", SizeBytes: 7, ModifiedUnixNs: 8, Sha256: bytes.Repeat([]byte{5}, 32)}},
		})
		n.Reports = append(n.Reports, &api.GuestReport{
			Name: g, Node: node, PauseUs: 2000 + uint64(i), GateUs: 1, StopUs: 2, DevicesUs: 3, MemoryUs: 4, ChannelsUs: 5,
			ResumeUs: 6, StoppedUnixNs: 1_000_000 * int64(i+1), RawBytes: 4096, NonZeroBytes: 1024, FramesRecorded: 2, UndrainedNics: 1,
		})
	}
	return n
}

func taken() record.Taken {
	begun := time.Unix(100, 0)
	return record.Taken{
		Cluster: "c", Epoch: 7, Label: "before", Spec: []byte("name: c\n"), Fence: &api.Fence{Token: 5, Store: 6},
		Images: []*api.NodeImage{image("n1", "b", "a"), image("n2", "z")}, ChannelsRecorded: true,
		Cut: round.CutBarrier, Networks: []string{"lan"}, Bypassed: []string{"theirs"}, OffFabric: []string{"z"},
		Begun: begun, Resumed: begun.Add(30 * time.Millisecond),
	}
}

// What is told when a checkpoint is taken is told again from the stored bytes.
func TestCheckpoint_SurvivesTheManifest(t *testing.T) {
	m, err := record.Manifest(taken())
	if err != nil {
		t.Fatal(err)
	}
	record.SetDurable(m, 2*time.Second)
	data, err := manifest.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err := manifest.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.Checkpoint(back)
	if err != nil {
		t.Fatal(err)
	}
	in := taken()
	reports := []*api.GuestReport{in.Images[0].Reports[1], in.Images[0].Reports[0], in.Images[1].Reports[0]}
	want := &api.Checkpoint{
		Id: "c@7", Cluster: "c", Epoch: 7, Label: "before", CreatedUnixNs: time.Unix(100, 0).UnixNano(),
		SkewUs: 1000, ResumedUs: 30_000, DurableUs: 2_000_000,
		RawBytes: 3 * 4096, NonZeroBytes: 3 * 1024, NewBytes: 2048, StoredBytes: 200,
		FramesRecorded: 6, ChannelsRecorded: true, Guests: reports, QemuVersion: "7.2.22",
		Cut: api.Cut_CUT_BARRIER, Networks: []string{"lan"}, Bypassed: []string{"theirs"}, OffFabric: []string{"z"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("checkpoint (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(in.Images[0].Guests[1].Files, record.Image(back.Guests[0]).Files, protocmp.Transform()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(in.Images[0].Guests[1].Objects, record.Image(back.Guests[0]).Objects, protocmp.Transform()); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	if n := len(back.Packs); n != 1 {
		t.Errorf("%d packs, want the one that both nodes named", n)
	}
}

func TestCheckImage(t *testing.T) {
	if err := record.CheckImage(image("n1", "a", "b"), []string{"b", "a"}); err != nil {
		t.Fatalf("good image: %v", err)
	}
	for _, tc := range []struct {
		name, want string
		guests     []string
		spoil      func(*api.NodeImage)
	}{
		{"missing", "guest c: missing", []string{"a", "b", "c"}, func(*api.NodeImage) {}},
		{"foreign", `guest "b": not one`, []string{"a"}, func(*api.NodeImage) {}},
		{"twice", `guest "a": not one of the node's, or twice`, []string{"a", "b"}, func(n *api.NodeImage) { n.Guests = append(n.Guests, n.Guests[0]) }},
		{"no report", "guest b: no report", []string{"a", "b"}, func(n *api.NodeImage) { n.Reports = n.Reports[:1] }},
		{"short id", "identity of 3 bytes", []string{"a", "b"}, func(n *api.NodeImage) { n.Guests[0].Objects[0].Id = []byte("abc") }},
		{"short digest", "SHA-256 of 3 bytes", []string{"a", "b"}, func(n *api.NodeImage) { n.Guests[0].Files[0].Sha256 = []byte("abc") }},
		{"empty", "guest a: empty", []string{"a", "b"}, func(n *api.NodeImage) { n.Guests[0].Objects = nil }},
		{"no machine", "no JSON", []string{"a", "b"}, func(n *api.NodeImage) { n.Guests[0].Machine = []byte("{") }},
	} {
		n := image("n1", "a", "b")
		tc.spoil(n)
		if err := record.CheckImage(n, tc.guests); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: CheckImage = %v, want %q", tc.name, err, tc.want)
		}
	}
}
