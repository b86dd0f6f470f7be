package coordinatortest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/fnv"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"fermata/imageio/object"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// Sizes of the fake guests' memory, in pages.
const (
	pageBytes   = object.PageBytes
	commonPages = 4 // equal in all guests
	ownPages    = 4
	zeroPages   = 8
	// MemoryBytes is the size of a fake guest's memory, whatever its
	// specification says.
	MemoryBytes = (commonPages + ownPages + zeroPages) * pageBytes
	// UniqueBytes is what n guests have of distinct pages after a fresh boot.
	uniquePagesOfAll = commonPages
)

// UniqueBytes is what n guests that booted afresh have in distinct pages.
func UniqueBytes(n int) uint64 { return uint64(uniquePagesOfAll+n*ownPages) * pageBytes }

// boot fills the memory of a guest that starts afresh.
func boot(cluster, name string) []byte {
	memory := make([]byte, MemoryBytes)
	for i := range commonPages {
		binary.LittleEndian.PutUint64(memory[i*pageBytes:], uint64(i)+1)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(cluster + "/" + name)) // a hash never fails
	for i := range ownPages {
		binary.LittleEndian.PutUint64(memory[(commonPages+i)*pageBytes:], h.Sum64()+uint64(i))
	}
	return memory
}

// machine describes the guest's machine, as it is compared before a restart.
func machine(spec *api.GuestSpec) []byte {
	b, err := json.Marshal(map[string]any{"machine": spec.GetMachine(), "cpu": spec.GetCpu(), "memory": spec.GetMemoryBytes()})
	if err != nil {
		panic(err) // strings and a number
	}
	return b
}

// Describe implements api.NodeServer.
func (a *Agent) Describe(ctx context.Context, _ *api.DescribeRequest) (info *api.NodeInfo, err error) {
	err = a.meet(ctx, Describe, func() error {
		info = a.info()
		return nil
	})
	return info, err
}

// CheckGuests implements api.NodeServer. It finds what making the guests would, but for
// damaged bytes, which it looks for only on request.
func (a *Agent) CheckGuests(req *api.CheckGuestsRequest, stream grpc.ServerStreamingServer[api.CheckGuestsUpdate]) error {
	return a.meet(stream.Context(), Check, func() error {
		create := req.GetCreate()
		a.mu.Lock()
		free := a.cfg.MemoryBytes - a.used()
		if c := a.clusters[create.GetCluster()]; c != nil {
			free += c.memory()
		}
		a.mu.Unlock()
		for _, spec := range create.GetGuests() {
			if spec.GetMemoryBytes() > free {
				return fault.New(fault.NoSpace, "guest %s of cluster %s does not fit", spec.GetName(), create.GetCluster())
			}
			free -= spec.GetMemoryBytes()
		}
		if err := a.checkImages(stream.Context(), req); err != nil {
			return err
		}
		return stream.Send(&api.CheckGuestsUpdate{Checked: true})
	})
}

func (a *Agent) checkImages(ctx context.Context, req *api.CheckGuestsRequest) error {
	create := req.GetCreate()
	if len(create.GetImages()) == 0 {
		return nil
	}
	if req.GetReadData() {
		_, err := a.makeGuests(ctx, create)
		return err
	}
	if err := a.repo.Refresh(ctx); err != nil {
		return class(err)
	}
	reader, err := a.repo.NewReader(ctx, create.GetPacks())
	if err != nil {
		return class(err)
	}
	for i, image := range create.GetImages() {
		if err := compatible(create.GetGuests()[i], image); err != nil {
			return err
		}
		for _, o := range image.GetObjects() {
			if _, err := reader.UniquePages(ctx, []repository.Ref{refOf(o)}); err != nil {
				return class(err)
			}
		}
	}
	return nil
}

// CreateGuests implements api.NodeServer.
func (a *Agent) CreateGuests(req *api.CreateGuestsRequest, stream grpc.ServerStreamingServer[api.CreateGuestsUpdate]) error {
	return a.meet(stream.Context(), Create, func() error {
		made, err := a.makeGuests(stream.Context(), req)
		if err != nil {
			return err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if ctx := stream.Context(); ctx.Err() != nil {
			return context.Cause(ctx) // as the agent does: what is destroyed meanwhile stays so
		}
		c, err := a.admit(req.GetCluster(), req.GetFence())
		if err != nil {
			return err
		}
		for name, g := range made {
			if have := c.guests[name]; have != nil && (c.epoch != req.GetEpoch() || !proto.Equal(have.spec, g.spec)) {
				return fault.New(fault.Exists, "guest %s exists from epoch %d", name, c.epoch)
			}
		}
		if len(c.guests) > 0 && c.epoch == req.GetEpoch() {
			made = nil // asked again
		}
		var need uint64
		for _, g := range made {
			need += g.spec.GetMemoryBytes()
		}
		if free := a.cfg.MemoryBytes - a.used(); need > free {
			return fault.New(fault.NoSpace, "cluster %s needs %d bytes, %d are free", req.GetCluster(), need, free)
		}
		c.epoch, c.released, c.peers = req.GetEpoch(), false, req.GetPeers()
		for name, g := range made {
			c.guests[name] = g
		}
		for _, name := range sortedKeys(c.guests) {
			err := stream.Send(&api.CreateGuestsUpdate{
				Guest: name, Created: true, DoneBytes: MemoryBytes, TotalBytes: MemoryBytes, FramesInjected: c.guests[name].injected,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// makeGuests boots or reads the guests of a request.
func (a *Agent) makeGuests(ctx context.Context, req *api.CreateGuestsRequest) (map[string]*guest, error) {
	made := map[string]*guest{}
	var reader *repository.Reader
	if len(req.GetImages()) > 0 {
		var err error
		repo := a.repo.Within(ctx, 0)
		if err = repo.Refresh(ctx); err != nil {
			return nil, class(err)
		}
		if reader, err = repo.NewReader(ctx, req.GetPacks()); err != nil {
			return nil, class(err)
		}
	}
	for i, spec := range req.GetGuests() {
		g := &guest{spec: spec}
		if reader == nil {
			g.memory = boot(req.GetCluster(), spec.GetName())
		} else if err := g.restore(ctx, reader, req.GetImages()[i]); err != nil {
			return nil, err
		}
		made[spec.GetName()] = g
	}
	return made, nil
}

// compatible refuses an image of another machine.
func compatible(spec *api.GuestSpec, image *api.GuestImage) error {
	var was, is any
	if err := errors.Join(json.Unmarshal(image.GetMachine(), &was), json.Unmarshal(machine(spec), &is)); err != nil {
		return fault.Wrap(fault.Invalid, err, "machine of guest %s", spec.GetName())
	}
	if image.GetGuest() != spec.GetName() || !jsonEqual(was, is) {
		return fault.New(fault.Mismatch, "guest %s: machine was %s, is %s", spec.GetName(), image.GetMachine(), machine(spec))
	}
	return nil
}

func refOf(o *api.ImageObject) repository.Ref {
	return repository.Ref{ID: object.ID(o.GetId()), Size: int64(o.GetSizeBytes())}
}

func (g *guest) restore(ctx context.Context, reader *repository.Reader, image *api.GuestImage) error {
	if err := compatible(g.spec, image); err != nil {
		return err
	}
	for _, o := range image.GetObjects() {
		data, err := reader.ReadBytes(ctx, refOf(o), MemoryBytes)
		if err != nil {
			return class(err)
		}
		switch o.GetKind() {
		case "memory":
			g.memory = data
		case "channel":
			g.injected += o.GetCount()
		}
	}
	if len(g.memory) != MemoryBytes {
		return fault.New(fault.Corrupt, "guest %s: no memory in its image", g.spec.GetName())
	}
	return nil
}

func jsonEqual(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && slices.Equal(x, y)
}

// StepClocks implements api.NodeServer: each guest has an agent that answers.
func (a *Agent) StepClocks(ctx context.Context, req *api.StepClocksRequest) (*api.StepClocksReply, error) {
	err := a.meet(ctx, StepClocks, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, err := a.admit(req.GetCluster(), req.GetFence())
		if err != nil {
			return err
		}
		switch {
		case len(c.guests) == 0:
			return fault.New(fault.NotFound, "cluster %s has no guests on node %s", req.GetCluster(), a.cfg.Name)
		case c.released:
			return fault.New(fault.Invalid, "cluster %s runs", req.GetCluster())
		}
		return nil
	})
	return &api.StepClocksReply{}, err
}

// ReleaseGuests implements api.NodeServer.
func (a *Agent) ReleaseGuests(ctx context.Context, req *api.ReleaseGuestsRequest) (*api.ReleaseGuestsReply, error) {
	err := a.meet(ctx, Release, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, err := a.admit(req.GetCluster(), req.GetFence())
		if err != nil {
			return err
		}
		if len(c.guests) == 0 {
			return fault.New(fault.NotFound, "cluster %s has no guests on node %s", req.GetCluster(), a.cfg.Name)
		}
		c.released = true
		return nil
	})
	return &api.ReleaseGuestsReply{}, err
}

// DestroyGuests implements api.NodeServer.
func (a *Agent) DestroyGuests(ctx context.Context, req *api.DestroyGuestsRequest) (*api.DestroyGuestsReply, error) {
	err := a.meet(ctx, Destroy, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, err := a.admit(req.GetCluster(), req.GetFence())
		if err != nil {
			return err
		}
		c.guests, c.released = map[string]*guest{}, false
		return nil
	})
	return &api.DestroyGuestsReply{}, err
}

// ReadConsole implements api.NodeServer.
func (a *Agent) ReadConsole(req *api.ConsoleRequest, stream grpc.ServerStreamingServer[api.ConsoleChunk]) error {
	text := []byte("guest " + req.GetGuest() + " on " + a.cfg.Name + "\n")
	if err := stream.Send(&api.ConsoleChunk{Data: text[min(req.GetOffset(), uint64(len(text))):]}); err != nil {
		return err
	}
	if req.GetFollow() {
		<-stream.Context().Done()
	}
	return nil
}

// TraceFrames implements api.NodeServer: a frame of each guest, and no more.
func (a *Agent) TraceFrames(req *api.TraceRequest, stream grpc.ServerStreamingServer[api.TraceChunk]) error {
	return stream.Send(&api.TraceChunk{Node: a.cfg.Name, Frames: []*api.TracedFrame{{Guest: "on " + a.cfg.Name, Nic: req.GetNetwork(), Data: []byte("frame")}}})
}

// class gives an error of the repository its class.
func class(err error) error {
	if errors.Is(err, repository.ErrCorrupt) {
		return fault.Wrap(fault.Corrupt, err, "")
	}
	return err
}
