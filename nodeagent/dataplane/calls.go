package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

// call carries out one request. The descriptors of in are the call's.
func (s *Server) call(ctx context.Context, f *fabric.Fabric, in incoming) (out reply, frames []byte, err error) {
	r := in.request
	switch r.Op {
	case opJoin, opUplink:
		return reply{}, nil, join(f, r, in.files)
	}
	defer closeFiles(in.files) // no other request has any
	switch r.Op {
	case opLives:
		out.Lives, err = f.Lives()
	case opContinue:
		err = f.ContinueCluster(r.Cluster, r.Floor, r.Epoch)
	case opRemove:
		s.forget(func(k guestKey) bool { return k.cluster == r.Cluster })
		err = f.RemoveCluster(r.Cluster)
	case opPeers:
		err = f.SetPeers(r.Cluster, r.Peers)
	case opStats:
		var stats fabric.ClusterStats
		stats, err = f.ClusterStats(r.Cluster)
		out.Stats = &stats
	case opLeave:
		s.forget(func(k guestKey) bool { return k == guestKey{r.Cluster, r.Guest} })
		err = f.Leave(r.Cluster, r.Guest)
	case opBelongs:
		err = s.belongs(guestKey{r.Cluster, r.Guest}, r.PID)
	case opInject:
		var recorded [][]byte
		if recorded, err = fabric.DecodeFrames(in.frames); err == nil {
			err = f.Inject(r.Cluster, fabric.PortKey{Guest: r.Guest, NIC: r.NIC}, recorded)
		}
	case opDurable:
		f.Durable(r.Cluster, r.Epoch)
	default:
		return cutCall(ctx, f, r)
	}
	return out, nil, err
}

// cutCall carries out a request that belongs to a cut.
func cutCall(ctx context.Context, f *fabric.Fabric, r request) (out reply, frames []byte, err error) {
	switch r.Op {
	case opBeginCut:
		err = f.BeginCut(r.Cluster, r.Epoch, r.Members, r.For)
	case opGate:
		out.Early, err = f.Gate(r.Cluster, r.Guest, r.For)
	case opDrain:
		out.Count, err = f.Drain(ctx, r.Cluster, r.Guest, r.For)
	case opPassCut:
		err = f.PassCut(ctx, r.Cluster, r.Epoch, r.Guest)
	case opUngate:
		err = f.Ungate(r.Cluster, r.Guest)
	case opSendMarkers:
		err = f.SendMarkers(r.Cluster, r.Epoch)
	case opWaitMarkers:
		err = f.WaitMarkers(ctx, r.Cluster, r.Epoch)
	case opChannelState:
		var state map[fabric.PortKey][][]byte
		state, err = f.ChannelState(r.Cluster, r.Epoch)
		for nic, recorded := range state {
			b := fabric.EncodeFrames(recorded)
			out.Cards = append(out.Cards, recordedCard{PortKey: nic, Bytes: len(b)})
			frames = append(frames, b...)
		}
	case opEndCut:
		f.EndCut(r.Cluster, r.Epoch)
	default:
		err = fmt.Errorf("request %q: unknown: %w", r.Op, fabric.ErrMalformed)
	}
	return out, frames, err
}

// join attaches a NIC or an uplink. It owns files.
func join(f *fabric.Fabric, r request, files []*os.File) error {
	if r.Op == opUplink {
		if len(files) != 1 {
			closeFiles(files)
			return fmt.Errorf("uplink with %d descriptors: %w", len(files), fabric.ErrMalformed)
		}
		return f.AttachUplink(fabric.UplinkConfig{Cluster: r.Cluster, Network: r.Network, Outside: r.Outside, Device: files[0]})
	}
	if len(files) != 2 {
		closeFiles(files)
		return fmt.Errorf("NIC with %d descriptors: %w", len(files), fabric.ErrMalformed)
	}
	return f.Join(fabric.PortConfig{
		Cluster: r.Cluster, Network: r.Network, Guest: r.Guest, NIC: r.NIC, MAC: r.MAC, Gated: r.Gated,
		FabricEnd: files[0], GuestEnd: files[1],
	})
}

// trace answers with one reply for each batch of events, then returns how it ended.
func trace(ctx context.Context, f *fabric.Fabric, c *conn, r request) error {
	return f.Trace(ctx, r.Cluster, r.Network, func(events []fabric.Traced, lost uint64) error {
		part := reply{More: true, Lost: lost, Events: make([]event, len(events))}
		var frames []byte
		for i, e := range events {
			frames = append(frames, e.Data...)
			part.Events[i] = event{Traced: e, Bytes: len(e.Data)}
			part.Events[i].Data = nil
		}
		return c.write(part, frames)
	})
}

// process is a guest's, by which the data plane knows that it is needed.
type process struct{ pidfd int }

// belongs notes the process of a guest.
func (s *Server) belongs(guest guestKey, pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d of guest %s of cluster %s: %w", pid, guest.guest, guest.cluster, err)
	}
	s.forget(func(k guestKey) bool { return k == guest })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests[guest] = &process{pidfd}
	return nil
}

// forget drops the processes of guests that are no more.
func (s *Server) forget(gone func(guestKey) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, p := range s.guests {
		if gone(k) {
			p.close()
			delete(s.guests, k)
		}
	}
}

// runs reports whether the process has not ended: pidfd_open(2), readable once it has.
func (p *process) runs() bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n == 0 || errors.Is(err, unix.EINTR)
}

func (p *process) close() { _ = unix.Close(p.pidfd) } // nothing was written through it
