package trials

import (
	"path/filepath"
	"strconv"
	"strings"

	"fermata/experiments/guests"
	"fermata/imageio/manifest"
	"fermata/imageio/repository"
	"fermata/nodeagent/fabric"
)

// memoryOf is a guest's part of a checkpoint, as far as datagrams leave traces in it.
type memoryOf struct {
	guests.Traces
	recorded map[uint64]int // datagrams in its channel state
}

// images reads a checkpoint from the repository.
func (r *rig) images(checkpointID string) map[string]memoryOf {
	r.Helper()
	all := map[string]memoryOf{}
	r.eachImage(checkpointID, func(guest string, kind manifest.Kind, b []byte) {
		part, ok := all[guest]
		if !ok {
			part = memoryOf{guests.Traces{Bytes: map[uint64]int{}, Receipts: map[uint64]int{}}, map[uint64]int{}}
			all[guest] = part
		}
		switch kind {
		case manifest.KindMemory:
			found := guests.Search(b)
			add(part.Bytes, found.Bytes)
			add(part.Receipts, found.Receipts)
		case manifest.KindChannel:
			frames, err := fabric.DecodeFrames(b)
			if err != nil {
				r.Fatal(err)
			}
			for _, f := range frames {
				if d, ok := guests.DatagramOf(f); ok {
					part.recorded[d.Hash]++
				}
			}
		}
	})
	return all
}

// eachImage visits the images of a checkpoint, straight from the repository.
func (r *rig) eachImage(checkpointID string, visit func(guest string, kind manifest.Kind, data []byte)) {
	r.Helper()
	ctx := r.Context()
	repo, err := repository.Open(ctx, repository.Config{Dir: filepath.Join(r.Dir, "repository")})
	if err != nil {
		r.Fatal(err)
	}
	_, number, _ := strings.Cut(checkpointID, "@")
	epoch, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		r.Fatal(err)
	}
	m, err := repo.Manifest(ctx, r.cluster, epoch)
	if err != nil {
		r.Fatal(err)
	}
	reader, err := repo.NewReader(ctx, m.Packs)
	if err != nil {
		r.Fatal(err)
	}
	for _, g := range m.Guests {
		for _, o := range g.Objects {
			b, err := reader.ReadBytes(ctx, repository.RefOf(o), int64(o.SizeBytes))
			if err != nil {
				r.Fatal(err)
			}
			visit(g.Name, o.Kind, b)
		}
	}
}

func add(to, from map[uint64]int) {
	for k, n := range from {
		to[k] += n
	}
}

// searchOrphans looks for every datagram of a trace in a checkpoint. What was sent
// behind its sender's point is nowhere: not in the memory of any other guest (the
// sender may have had it ready), and not in any channel state. What was sent before is
// at its receiver exactly once: received, or recorded, or in the receiver's kernel, on
// its way to the program.
func (r *rig) searchOrphans(checkpointID string, trace []tracedFrame) {
	r.Helper()
	image := r.images(checkpointID)
	if len(image) != r.app.Count {
		r.Fatalf("images of %d guests", len(image))
	}
	var behind, received, recorded, inKernel int
	for _, f := range trace {
		d, ok := guests.DatagramOf(f.data)
		if !ok {
			continue
		}
		if f.behind {
			behind++
			for guest, m := range image {
				if guest == f.guest {
					continue
				}
				if n := m.Bytes[d.Hash] + m.Receipts[d.Hash] + m.recorded[d.Hash]; n > 0 {
					r.Errorf("datagram %d of %s to %s was sent behind the cut, and is %d times in the image of %s", d.Number, f.guest, d.To, n, guest)
				}
			}
			continue
		}
		to := image[d.To]
		switch got, held := to.Receipts[d.Hash], to.recorded[d.Hash]; {
		case got == 1 && held == 0:
			received++
		case got == 0 && held == 1:
			recorded++
		case got == 0 && held == 0 && to.Bytes[d.Hash] > 0:
			inKernel++
		default:
			r.Errorf("datagram %d of %s to %s was sent before the cut, and its receiver has it %d times, the channel state %d times", d.Number, f.guest, d.To, got, held)
		}
	}
	r.Logf("orphan search in %s: %d datagrams from behind the cut, none in it; of before it %d received, %d recorded, %d inside a kernel", checkpointID, behind, received, recorded, inKernel)
	if behind == 0 || received == 0 || recorded == 0 {
		r.Error("the search proves nothing")
	}
}
