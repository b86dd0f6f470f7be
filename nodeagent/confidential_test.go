package nodeagent

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"fermata/imageio/extent"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/protocol/api"
	"fermata/protocol/guestport"
	"fermata/vmm"
)

// toolbox is a program in a guest of a bench.
type toolbox struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	n    int
}

func (b *bench) toolOf(i int) *toolbox {
	ours, theirs := net.Pipe()
	b.machines[i].tool <- theirs
	b.t.Cleanup(func() { ours.Close() })
	return &toolbox{t: b.t, conn: ours, r: guestport.NewReader(ours)}
}

func (tb *toolbox) ask(do guestport.Verb, ranges ...guestport.Range) (reply guestport.Reply) {
	tb.t.Helper()
	tb.n++
	id := fmt.Sprint(tb.n)
	if err := guestport.Write(tb.conn, guestport.Request{ID: id, Do: do, Ranges: ranges}); err != nil {
		tb.t.Fatal(err)
	}
	if err := guestport.Read(tb.r, &reply); err != nil || reply.ID != id {
		tb.t.Fatalf("%+v, %v", reply, err)
	}
	return reply
}

// write puts bytes into a guest's memory, as the guest would.
func (b *bench) write(i int, at int64, data []byte) {
	b.t.Helper()
	f, err := os.OpenFile(b.machines[i].Memory()[0].Path, os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		b.t.Fatal(err)
	}
}

// memory reads a guest's memory out of an image.
func (b *bench) memory(image *api.NodeImage, i int) []byte {
	b.t.Helper()
	rd, err := b.agent.repo.repo.NewReader(b.t.Context(), image.Packs)
	if err != nil {
		b.t.Fatal(err)
	}
	at := slices.IndexFunc(image.Guests[i].Objects, func(o *api.ImageObject) bool { return o.Kind == kindMemory })
	ref, err := refOf(image.Guests[i].Objects[at])
	if err != nil {
		b.t.Fatal(err)
	}
	data, err := rd.ReadBytes(b.t.Context(), repository.Ref(ref), 1<<30)
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

// TestConfidential_IsInNoImage has a guest register memory and withdraw it again;
// with room for copies, and without.
func TestConfidential_IsInNoImage(t *testing.T) {
	for name, room := range map[string]int64{"copied": 1 << 30, "stored in the pause": 0} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 2)
			b.agent.budget = capture.NewBudget(room)
			const at = 0xe00000
			secret := bytes.Repeat([]byte("nobody may read this"), pageBytes/10)
			tool := b.toolOf(0)
			buffer := guestport.Range{Start: at, Bytes: 2 * pageBytes}
			given := guestport.Range{Start: givenAt, Bytes: 2 * pageBytes}
			for epoch, step := range []struct {
				do     guestport.Verb
				hidden bool
			}{{guestport.Hide, true}, {guestport.Status, true}, {guestport.Show, false}, {guestport.Hide, true}} {
				var ranges []guestport.Range
				want := []guestport.Range{given}
				if step.do != guestport.Status {
					ranges = append(ranges, buffer)
				}
				if step.hidden {
					want = append(want, buffer)
				}
				if r := tool.ask(step.do, ranges...); r.Error != "" || r.Life != 1 || len(r.Zeroed) != 0 || !slices.Equal(r.Ranges, want) {
					t.Fatalf("%s: %+v", step.do, r)
				}
				for _, where := range []int64{at, givenAt} {
					b.write(0, where, secret)
					b.write(1, where, secret)
				}
				image := b.checkpoint(uint64(epoch + 2))
				mine, other := b.memory(image, 0), b.memory(image, 1)
				if found := bytes.Contains(mine, secret[:20]); found == step.hidden {
					t.Errorf("after %s, in the image: %t", step.do, found)
				}
				if !bytes.Contains(other, secret[:20]) || bytes.Contains(other[givenAt:givenAt+2*pageBytes], secret[:20]) {
					t.Error("the other guest has registered nothing, and its specification one range")
				}
				wantBytes := uint64(2 * pageBytes * len(want))
				if got := image.Reports[0].ConfidentialBytes; got != wantBytes {
					t.Errorf("the report says that %d bytes were not read, want %d", got, wantBytes)
				}
				if n := len(image.Guests[0].Confidential); n == 1 != step.hidden {
					t.Errorf("the image says that %d ranges were registered", n)
				}
				b.allRun()
			}
			guests, err := b.agent.journal.Guests()
			if err != nil || len(guests) != 2 || !slices.Equal(guests[0].Confidential, []extent.Extent{{Off: at, Len: 2 * pageBytes}}) {
				t.Errorf("journal: %+v, %v", guests, err)
			}
		})
	}
}

// TestConfidential_NonsenseFromAGuest changes nothing and ends nothing.
func TestConfidential_NonsenseFromAGuest(t *testing.T) {
	b := newBench(t, 1)
	tool := b.toolOf(0)
	page := guestport.Range{Start: 0xe00000, Bytes: pageBytes}
	if r := tool.ask(guestport.Hide, page); r.Error != "" {
		t.Fatal(r.Error)
	}
	before := tool.ask(guestport.Status)
	many := make([]guestport.Range, guestport.MaxRanges+1)
	for i := range many {
		many[i] = guestport.Range{Start: uint64(i) * 2 * pageBytes, Bytes: pageBytes}
	}
	for _, c := range []struct {
		do     guestport.Verb
		ranges []guestport.Range
	}{
		{"read", []guestport.Range{page}},
		{guestport.Hide, nil},
		{guestport.Status, []guestport.Range{page}},
		{guestport.Hide, []guestport.Range{{Start: 1, Bytes: pageBytes}}},
		{guestport.Hide, []guestport.Range{{Start: 0, Bytes: 0}}},
		{guestport.Hide, []guestport.Range{page, {Start: 1 << 50, Bytes: pageBytes}}}, // no memory
		{guestport.Hide, []guestport.Range{{Start: 1 << 63, Bytes: pageBytes}}},
		{guestport.Hide, []guestport.Range{{Start: 0, Bytes: ^uint64(0) &^ (pageBytes - 1)}}},
		{guestport.Hide, many[:guestport.MaxRanges]}, // with the one before, one too many
	} {
		if r := tool.ask(c.do, c.ranges...); r.Error == "" || !slices.Equal(r.Ranges, before.Ranges) {
			t.Errorf("%s %d ranges: %q", c.do, len(c.ranges), r.Error)
		}
	}
	if _, err := tool.conn.Write([]byte("no json\n")); err != nil {
		t.Fatal(err)
	}
	var reply guestport.Reply
	if err := guestport.Read(tool.r, &reply); err != nil || !strings.Contains(reply.Error, "JSON") {
		t.Errorf("%+v, %v", reply, err)
	}
	// A line without an end is given up, and the next connection served.
	go func() { _, _ = tool.conn.Write(bytes.Repeat([]byte("x"), 2*guestport.MaxLine)) }()
	if r := b.toolOf(0).ask(guestport.Status); !slices.Equal(r.Ranges, before.Ranges) {
		t.Errorf("%+v", r)
	}
}

// TestConfidential_Restored says what was zeroed, and keeps it confidential.
func TestConfidential_Restored(t *testing.T) {
	b := newBench(t, 1)
	g := b.cluster.list()[0]
	m := &maker{agent: b.agent, cluster: b.cluster, guest: g, image: &api.GuestImage{
		Confidential: []*api.MemoryRange{{Start: 0xe00000, Bytes: pageBytes}},
	}}
	registered, zeroed, err := m.hide(t.Context())
	if err != nil || len(registered) != 1 || len(zeroed) != 2 {
		t.Fatalf("%v, %v, %v", registered, zeroed, err)
	}
	reply := g.confidential.answer(t.Context(), 7, &guestport.Request{Do: guestport.Status})
	if reply.Life != 7 || len(reply.Zeroed) != 2 || len(reply.Ranges) != 2 {
		t.Errorf("%+v", reply)
	}
	m.image.Confidential[0].Bytes = 17
	if _, _, err := m.hide(t.Context()); err == nil {
		t.Error("half pages of a manifest are taken")
	}
	g.spec.Confidential[0].Start = 1 << 40
	m.image = nil
	if _, _, err := m.hide(t.Context()); err == nil || !strings.Contains(err.Error(), vmm.ErrNotRAM.Error()) {
		t.Errorf("a specification beyond the guest's memory: %v", err)
	}
}
