package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/remote"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func newTraceCommand(o *operator) *cobra.Command {
	var network, path string
	var length time.Duration
	c := &cobra.Command{
		Use:   "trace CLUSTER",
		Short: "Write what guests send into a network as pcapng",
		Long: `Write what guests send into a network of their cluster as pcapng, which tshark and
Wireshark read. Each card is an interface of its own, named GUEST/CARD. The point of a
guest on a cut is a frame that says so: what the guest sends behind it is not part of
the checkpoint. The comment of every other frame is the epoch it was sent in.

Times are those of the nodes' clocks. A trace that is too slow loses frames, and says
how many; guests lose none. It ends with Ctrl-C or after --for.`,
		Example: `  fermata trace demo -w demo.pcapng --for 10s
  fermata trace demo --network lan | tshark -r - -T fields -e frame.comment -e eth.src`,
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			if length < 0 {
				return app.Usagef("--for %s: negative", length)
			}
			if f, ok := o.env.Stdout.(*os.File); ok && path == "-" && term.IsTerminal(int(f.Fd())) {
				return app.Usagef("a trace is not for a terminal: give a file with -w, or a pipe")
			}
			o.env.OnInterrupt("the trace ends, guests keep running")
			return o.call(c.Context(), "trace "+args[0], func(conn *remote.Conn) error {
				name, err := networkToTrace(c.Context(), conn, args[0], network)
				if err != nil {
					return err
				}
				// No deadline, which the other side would know of: it may find that it has
				// passed before we do, and tell of an error.
				ctx, cancel := context.WithCancel(c.Context())
				defer cancel()
				if length > 0 {
					defer time.AfterFunc(length, cancel).Stop()
				}
				stream, err := conn.Trace(ctx, &api.TraceRequest{Cluster: args[0], Network: name})
				if err != nil {
					return err
				}
				return o.writeTrace(ctx, stream, path)
			})
		},
	}
	c.Flags().StringVar(&network, "network", "", "`name` of the network; may be left out when there is one")
	c.Flags().StringVarP(&path, "write", "w", "-", "`file` to write; -: standard output")
	c.Flags().DurationVar(&length, "for", 0, "how long; 0: until Ctrl-C")
	return c
}

// networkToTrace is the network asked for, or the only one that guests are on.
func networkToTrace(ctx context.Context, conn *remote.Conn, cluster, asked string) (string, error) {
	if asked != "" {
		return asked, nil
	}
	c, err := conn.GetCluster(ctx, &api.GetClusterRequest{Name: cluster})
	if err != nil {
		return "", err
	}
	found := ""
	for _, g := range c.GetGuests() {
		for _, n := range g.GetNics() {
			if n.GetBridge() != "" {
				continue // not ours to see
			}
			switch found {
			case "", n.GetNetwork():
				found = n.GetNetwork()
			default:
				return "", app.Usagef("cluster %s has several networks (%s, %s): say which with --network", cluster, found, n.GetNetwork())
			}
		}
	}
	if found == "" {
		return "", fault.New(fault.Invalid, "no guest of cluster %s is on a network now", cluster)
	}
	return found, nil
}

// writeTrace writes until ctx ends, which is no error.
func (o *operator) writeTrace(ctx context.Context, stream grpc.ServerStreamingClient[api.TraceChunk], path string) (err error) {
	out := o.env.Stdout
	if path != "-" {
		f, err := os.Create(path)
		if err != nil {
			return fmt.Errorf("create trace: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	t, err := newTracer(out)
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = t.write(chunk)
		}
		if err != nil {
			return err
		}
	}
	lost := uint64(0)
	for _, n := range t.lost {
		lost += n
	}
	o.env.Notice("%d frames, %d points of guests; the trace has lost %d", t.frames, t.points, lost)
	return nil
}

// tracer writes pcapng (draft-ietf-opsawg-pcapng).
type tracer struct {
	w              *pcapgo.NgWriter
	cards          map[string]int // interface by GUEST/CARD
	lost           map[string]uint64
	frames, points uint64
}

// newTracer begins a file. Its interfaces follow when they are first met.
func newTracer(out io.Writer) (*tracer, error) {
	w, err := pcapgo.NewNgWriterInterface(out, cardInterface("fermata"), pcapgo.NgWriterOptions{
		SectionInfo: pcapgo.NgSectionInfo{Application: app.Name},
	})
	if err != nil {
		return nil, fmt.Errorf("write trace: %w", err)
	}
	return &tracer{w: w, cards: map[string]int{}, lost: map[string]uint64{}}, w.Flush()
}

func cardInterface(name string) pcapgo.NgInterface {
	return pcapgo.NgInterface{Name: name, LinkType: layers.LinkTypeEthernet, TimestampResolution: 9}
}

// write writes a chunk, and everything to its end: whoever reads a pipe sees it.
func (t *tracer) write(chunk *api.TraceChunk) error {
	t.lost[chunk.GetNode()] = chunk.GetLost()
	for _, f := range chunk.GetFrames() {
		card := f.GetGuest() + "/" + f.GetNic()
		id, known := t.cards[card]
		if !known {
			var err error
			if id, err = t.w.AddInterface(cardInterface(card)); err != nil {
				return fmt.Errorf("write trace: %w", err)
			}
			t.cards[card] = id
		}
		data, comment := f.GetData(), fmt.Sprintf("epoch %d", f.GetEpoch())
		if f.GetPoint() {
			comment = fmt.Sprintf("cut %d: point of guest %s", f.GetEpoch(), f.GetGuest())
			data = pointFrame(f.GetMac(), comment)
			t.points++
		} else {
			t.frames++
		}
		info := gopacket.CaptureInfo{
			Timestamp: time.Unix(0, f.GetUnixNs()), CaptureLength: len(data), Length: len(data), InterfaceIndex: id,
		}
		if err := t.w.WritePacketWithOptions(info, data, pcapgo.NgPacketOptions{Comments: []string{comment}}); err != nil {
			return fmt.Errorf("write trace: %w", err)
		}
	}
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	return nil
}

// etherTypePoint is IEEE 802 local experimental EtherType 2: no protocol of anybody.
const etherTypePoint = 0x88b6

// pointFrame stands in a trace for a guest's point: a frame that was never sent, from
// the guest's card to nobody, whose payload says what it is.
func pointFrame(mac []byte, text string) []byte {
	b := make([]byte, 14, 14+len(text))
	copy(b[6:12], mac)
	binary.BigEndian.PutUint16(b[12:], etherTypePoint)
	return append(b, text...)
}
