package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fermata/experiments/result"
	"fermata/nodeagent/fabric"
	"fermata/vmm/vmmtest"
)

// The arms, as they stand in the document.
const (
	armCalls        = "system calls"    // a socket pair: one write and one read a frame
	armSwitch       = "switch"          // the fabric between two ports
	armLink         = "link"            // two fabrics, a TCP connection between them
	armBridge       = "bridge"          // packet sockets on the far ends of two veths of a Linux bridge
	armGuest        = "guest on switch" // the fabric between a port and a guest
	armSocketNetdev = "guest on socket" // QEMU's socket netdev
	armTap          = "guest on tap"    // a guest's tap on a Linux bridge
	clusterName     = "wire"
	networkName     = "net"
)

type arm struct {
	name  string
	guest bool
	open  func(ctx context.Context, scratch string) (*line, error)
}

var arms = []arm{
	{armCalls, false, openCalls},
	{armSwitch, false, func(context.Context, string) (*line, error) { return openFabric(1) }},
	{armLink, false, func(context.Context, string) (*line, error) { return openFabric(2) }},
	{armBridge, false, openBridge},
	{armGuest, true, openGuestOnSwitch},
	{armSocketNetdev, true, openGuestOnSocket},
	{armTap, true, openGuestOnTap},
}

// guestFrame is the most that the program in the guest has buffers for.
const guestFrame = 1600

func (a arm) most() int {
	if a.guest {
		return guestFrame
	}
	return fabric.MaxFrame
}

func openCalls(context.Context, string) (*line, error) {
	a, b, err := fabric.NewPair()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	defer b.Close()
	far, err := dupEnd(a)
	if err != nil {
		return nil, err
	}
	near, err := dupEnd(b)
	if err != nil {
		return nil, errors.Join(err, far.close())
	}
	return &line{near: near, far: far}, nil
}

// node is one fabric that runs.
type node struct {
	fabric *fabric.Fabric
	addr   string
	end    func() error
}

func newNode(name string) (*node, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f, err := fabric.New(fabric.Config{Node: name, Incarnation: name, Listener: lis, Plaintext: true})
	if err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return &node{f, lis.Addr().String(), func() error { cancel(); return <-ended }}, f.CreateCluster(clusterName, 1)
}

// attach joins a port and returns the guest's end of it.
func (n *node) attach(guest string, mac []byte) (guestEnd *os.File, err error) {
	fabricEnd, guestEnd, err := fabric.NewPair()
	if err != nil {
		return nil, err
	}
	_, err = n.fabric.Attach(fabric.PortConfig{
		Cluster: clusterName, Network: networkName, Guest: guest, NIC: "nic0", MAC: mac, FabricEnd: fabricEnd, GuestEnd: guestEnd,
	})
	return guestEnd, err
}

// openFabric puts the generator's ends on one node or two.
func openFabric(nodes int) (_ *line, err error) {
	l := &line{}
	defer func() {
		if err != nil {
			for _, end := range l.ends {
				err = errors.Join(err, end())
			}
		}
	}()
	var on []*node
	var peers []fabric.Peer
	for i := range nodes {
		n, err := newNode(fmt.Sprintf("n%d", i+1))
		if n != nil {
			l.ends = append(l.ends, n.end)
		}
		if err != nil {
			return nil, err
		}
		on = append(on, n)
		peers = append(peers, fabric.Peer{Node: fmt.Sprintf("n%d", i+1), Address: n.addr})
	}
	for _, n := range on {
		if err := n.fabric.SetPeers(clusterName, peers); err != nil {
			return nil, err
		}
	}
	ends := make([]end, 2)
	for i, mac := range [][]byte{nearMAC, farMAC} {
		guestEnd, err := on[i%nodes].attach(fmt.Sprintf("g%d", i+1), mac)
		if err != nil {
			return nil, err
		}
		e, err := dupEnd(guestEnd)
		if err != nil {
			return nil, err
		}
		ends[i] = e
	}
	l.near, l.far = ends[0], ends[1]
	return l, nil
}

// bridge is a Linux bridge in a network namespace of its own.
type bridge struct {
	ns     netns.NsHandle
	handle *netlink.Handle
	link   netlink.Link
}

// jumbo is the MTU of everything on the bridge.
const jumbo = 9000

func newBridge() (_ *bridge, err error) {
	b := &bridge{}
	if err := inNamespace(netns.None(), func() error {
		b.ns, err = netns.New() // moves this thread into it
		return err
	}); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.handle, err = netlink.NewHandleAt(b.ns); err != nil {
		return nil, err
	}
	b.link = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: jumbo}}
	if err := b.handle.LinkAdd(b.link); err != nil {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	return b, b.handle.LinkSetUp(b.link)
}

func (b *bridge) close() error {
	if b.handle != nil {
		b.handle.Close()
	}
	return b.ns.Close() // takes its devices along
}

// inNamespace runs f on a thread of its own in ns, which then ends.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread does not go back
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// plug makes a veth on the bridge and returns a packet socket on its other side.
func (b *bridge) plug(name string) (*socketEnd, error) {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: jumbo}, PeerName: name + "p"}
	if err := b.handle.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make veth: %w", err)
	}
	peer, err := b.handle.LinkByName(name + "p")
	if err != nil {
		return nil, err
	}
	for _, l := range []netlink.Link{veth, peer} {
		if err := errors.Join(b.handle.LinkSetMTU(l, jumbo), b.handle.LinkSetUp(l)); err != nil {
			return nil, fmt.Errorf("set up veth: %w", err)
		}
	}
	if err := b.handle.LinkSetMaster(peer, b.link); err != nil {
		return nil, fmt.Errorf("put veth on bridge: %w", err)
	}
	var fd int
	err = inNamespace(b.ns, func() (err error) {
		all := int(uint16(unix.ETH_P_ALL)>>8 | uint16(unix.ETH_P_ALL)<<8&0xff00)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		const room = 4 << 20 // as the fabric's sockets have
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: veth.Attrs().Index}))
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	return newSocketEnd(fd)
}

func openBridge(context.Context, string) (_ *line, err error) {
	b, err := newBridge()
	if err != nil {
		return nil, err
	}
	near, err := b.plug("near")
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	far, err := b.plug("far")
	if err != nil {
		return nil, errors.Join(err, near.close(), b.close())
	}
	return &line{near: near, far: far, ends: []func() error{b.close}}, nil
}

// guest boots the program that answers frames, with a netdev. extra are files that
// QEMU gets, from descriptor 3 on.
func guest(ctx context.Context, scratch, netdev string, ns netns.NsHandle, extra ...*os.File) (end func() error, err error) {
	program := filepath.Join(scratch, "program")
	if err := os.WriteFile(program, vmmtest.Program(), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, result.QEMU, "-nodefaults", "-accel", "tcg", "-machine", "pc-q35-7.2", "-cpu", "qemu64", "-m", "16",
		"-display", "none", "-kernel", program, "-netdev", netdev+",id=n",
		"-device", "virtio-net-pci,netdev=n,mac=02:00:00:00:00:01,bus=pcie.0,addr=0x10,romfile=")
	cmd.ExtraFiles = extra
	var said bytes.Buffer
	cmd.Stderr = &said
	start := cmd.Start
	if ns.IsOpen() {
		start = func() error { return inNamespace(ns, cmd.Start) }
	}
	if err := start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return func() error {
		cancel()
		err := cmd.Wait()
		if cmd.ProcessState.Exited() { // not by our signal
			return fmt.Errorf("QEMU ended: %w: %s", err, said.Bytes())
		}
		return nil
	}, nil
}

func openGuestOnSwitch(ctx context.Context, scratch string) (_ *line, err error) {
	n, err := newNode("n1")
	if err != nil {
		return nil, err
	}
	l := &line{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.end())
		}
	}()
	mine, err := n.attach("g1", nearMAC)
	if err != nil {
		return nil, err
	}
	its, err := n.attach("g2", farMAC)
	if err != nil {
		return nil, err
	}
	near, err := dupEnd(mine)
	if err != nil {
		return nil, err
	}
	end, err := guest(ctx, scratch, "dgram,local.type=fd,local.str=3", netns.None(), its)
	if err != nil {
		return nil, errors.Join(err, near.close())
	}
	l.near, l.ends = near, []func() error{end, n.end}
	return l, nil
}

func openGuestOnSocket(ctx context.Context, scratch string) (*line, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer lis.Close()
	end, err := guest(ctx, scratch, "socket,connect="+lis.Addr().String(), netns.None())
	if err != nil {
		return nil, err
	}
	conn, err := lis.Accept()
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return &line{near: newStreamEnd(conn), ends: []func() error{end}}, nil
}

func openGuestOnTap(ctx context.Context, scratch string) (_ *line, err error) {
	b, err := newBridge()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, NonPersist: false}
	err = inNamespace(b.ns, func() error { return netlink.LinkAdd(tap) })
	if err != nil {
		return nil, fmt.Errorf("make tap: %w", err)
	}
	link, err := b.handle.LinkByName("tap0")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(b.handle.LinkSetMaster(link, b.link), b.handle.LinkSetUp(link)); err != nil {
		return nil, fmt.Errorf("put tap on bridge: %w", err)
	}
	near, err := b.plug("near")
	if err != nil {
		return nil, err
	}
	end, err := guest(ctx, scratch, "tap,ifname=tap0,script=no,downscript=no", b.ns)
	if err != nil {
		return nil, errors.Join(err, near.close())
	}
	return &line{near: near, ends: []func() error{end, b.close}}, nil
}
