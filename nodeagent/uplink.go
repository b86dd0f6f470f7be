package nodeagent

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// maxUplinks bounds one request; a specification has no more networks.
const maxUplinks = 64

// tapPattern is what the kernel names TAP devices by.
const tapPattern = "fermata%d"

const defaultMTU = 1500

// openTAP makes a TAP device on one of the node's bridges. It ends with its last
// descriptor: who is killed leaves none behind.
//
// Source: Documentation/networking/tuntap.rst of the kernel.
func (a *Agent) openTAP(bridge string, mtu uint32) (_ *os.File, err error) {
	master, err := a.bridge(bridge)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(tapPattern)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make TAP device: %w", err), unix.Close(fd))
	}
	// Not before it is a device: the poller would find an error on it.
	f := os.NewFile(uintptr(fd), request.Name())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("join TAP device to bridge %s: %w", master.Attrs().Name, err), f.Close())
		}
	}()
	link, err := netlink.LinkByName(request.Name())
	if err != nil {
		return nil, err
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	return f, errors.Join(netlink.LinkSetMTU(link, int(mtu)), netlink.LinkSetMaster(link, master), netlink.LinkSetUp(link))
}

// bridge finds the device behind a bridge of the configuration.
func (a *Agent) bridge(name string) (netlink.Link, error) {
	device, offered := a.cfg.Bridges[name]
	if !offered {
		return nil, fault.New(fault.Mismatch, "node %s offers no bridge %s: name it under bridges in its agent.yaml", a.cfg.Name, name)
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, fault.Wrap(fault.Mismatch, err, "bridge %s of node %s (%s)", name, a.cfg.Name, device)
	}
	return link, nil
}

// tapStatus is what a card on a bridge has carried.
func tapStatus(g *guest, n *api.NICSpec) *api.NICStatus {
	s := &api.NICStatus{Name: n.Name, Network: n.Network, Mac: n.Mac, Bridge: n.Bridge}
	name, err := g.machine.TAPName(n.Name)
	if err != nil {
		return s // the guest is ending
	}
	link, err := netlink.LinkByName(name)
	if err != nil || link.Attrs().Statistics == nil {
		return s
	}
	// The device sends what the guest receives.
	st := link.Attrs().Statistics
	s.FramesReceived, s.FramesSent, s.FramesDropped = st.RxPackets, st.TxPackets, st.TxDropped+st.RxDropped
	s.Drops = map[string]uint64{"to-guest": st.TxDropped, "from-guest": st.RxDropped}
	return s
}

// bypassDropped is how many frames have found no room on a guest's cards on bridges.
func bypassDropped(g *guest) (n uint64) {
	for _, card := range g.spec.Nics {
		if card.Bridge != "" {
			n += tapStatus(g, card).FramesDropped
		}
	}
	return n
}

// uplinksOf is what the journal keeps of a request.
func uplinksOf(req *api.CreateGuestsRequest) []journal.Uplink {
	var all []journal.Uplink
	for _, u := range req.GetUplinks() {
		all = append(all, journal.Uplink{Network: u.GetNetwork(), Bridge: u.GetBridge(), Outside: int(u.GetOutside()), MTU: u.GetMtu()})
	}
	return all
}

// openUplinks joins networks of a cluster to bridges of this node, but those that are
// open.
func (a *Agent) openUplinks(cluster string, uplinks []journal.Uplink, open []fabric.UplinkStats) error {
	for _, u := range uplinks {
		if slices.ContainsFunc(open, func(o fabric.UplinkStats) bool { return o.Network == u.Network }) {
			continue
		}
		outside, err := outsideOf(api.Outside(u.Outside))
		if err != nil {
			return err
		}
		device, err := a.openTAP(u.Bridge, u.MTU)
		if err != nil {
			return fmt.Errorf("uplink of network %s: %w", u.Network, err)
		}
		err = a.plane.AttachUplink(fabric.UplinkConfig{Cluster: cluster, Network: u.Network, Outside: outside, Device: device})
		if err != nil && !errors.Is(err, fabric.ErrExists) {
			return err
		}
	}
	return nil
}

func outsideOf(o api.Outside) (fabric.Outside, error) {
	switch o {
	case api.Outside_OUTSIDE_DROP:
		return fabric.OutsideDrop, nil
	case api.Outside_OUTSIDE_ALLOW:
		return fabric.OutsideAllow, nil
	case api.Outside_OUTSIDE_HOLD_UNTIL_DURABLE:
		return fabric.OutsideHold, nil
	default:
		return 0, fault.New(fault.Invalid, "uplink: unknown policy %s", o)
	}
}

// uplinkStatus is what the cluster's uplinks on this node have carried.
func (a *Agent) uplinkStatus(c *cluster, stats []fabric.UplinkStats) []*api.UplinkStatus {
	var all []*api.UplinkStatus
	for _, u := range c.record().Uplinks {
		for _, s := range stats {
			if s.Network != u.Network {
				continue
			}
			all = append(all, &api.UplinkStatus{
				Cluster: c.name, Node: a.cfg.Name,
				Uplink:         &api.Uplink{Network: u.Network, Bridge: u.Bridge, Outside: api.Outside(u.Outside), Mtu: u.MTU},
				FramesReceived: s.Received, FramesSent: s.Sent, FramesWaiting: s.Waiting, FramesDropped: s.Dropped.Total(), FramesSpoofed: s.Spoofed,
			})
		}
	}
	return all
}
