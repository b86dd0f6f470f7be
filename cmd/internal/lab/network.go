package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridgeName is the lab's underlay inside the lab's own network namespace.
const bridgeName = "underlay"

// underlay is the network between the lab's nodes: a bridge in the lab's own
// namespace and one namespace with a veth end for each node. Nothing has a
// name outside; when the last process in a namespace ends, it is gone.
//
// Concurrency: one goroutine at a time.
type underlay struct {
	bridge *netlink.Bridge
	nodes  []nodeNet
}

// nodeNet is one node's place on the underlay.
type nodeNet struct {
	ns   netns.NsHandle
	addr net.IP
}

// hubAddress is where the lab itself (coordinator, etcd) is on the underlay.
func hubAddress() net.IP { return net.IPv4(10, 99, 0, 1) }

// newUnderlay builds the bridge in the present namespace.
//
// Preconditions: the process runs in a network namespace of its own.
func newUnderlay() (*underlay, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring up loopback: %w", err)
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("add bridge: %w", err)
	}
	if err := netlink.AddrAdd(br, addrOf(hubAddress())); err != nil {
		return nil, fmt.Errorf("give the bridge its address: %w", err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bring up bridge: %w", err)
	}
	return &underlay{bridge: br}, nil
}

func addrOf(ip net.IP) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}
}

const (
	// underlayMTU has room for a frame of 1500 bytes in VXLAN.
	underlayMTU = 1600
	// firstVNI is the VXLAN network of the lab's first bridge; the others follow.
	firstVNI  = 100
	vxlanPort = 4789 // RFC 7348
)

func nodeAddress(i int) net.IP { return net.IPv4(10, 99, 0, byte(11+i)) }

// addBridge makes a bridge on node number i that is one network with its likes on the
// other nodes, by VXLAN.
func (u *underlay) addBridge(i, nodes, index int, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make bridge %s on node %d: %w", name, i+1, err)
		}
	}()
	h, err := netlink.NewHandleAt(u.nodes[i].ns)
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := h.LinkAdd(bridge); err != nil {
		return err
	}
	tunnel := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("vxlan%d", index), MasterIndex: bridge.Index, MTU: 1500},
		VxlanId:   firstVNI + index, SrcAddr: nodeAddress(i), Port: vxlanPort, Learning: true,
	}
	if err := h.LinkAdd(tunnel); err != nil {
		return err
	}
	for other := range nodes {
		if other == i {
			continue
		}
		// Where it floods to: RFC 7348 wants multicast for that, which a list replaces.
		if err := h.NeighAppend(&netlink.Neigh{
			LinkIndex: tunnel.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, Flags: netlink.NTF_SELF,
			HardwareAddr: make(net.HardwareAddr, 6), IP: nodeAddress(other),
		}); err != nil {
			return err
		}
	}
	return errors.Join(h.LinkSetUp(tunnel), h.LinkSetUp(bridge))
}

// addNode makes the namespace of node number i (from 0) and wires it.
func (u *underlay) addNode(i int) (_ nodeNet, err error) {
	ip := nodeAddress(i)
	ns, err := newNamespace()
	if err != nil {
		return nodeNet{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.Close())
		}
	}()
	hubEnd, nodeEnd := fmt.Sprintf("node%d", i+1), "eth0"
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: hubEnd, MasterIndex: u.bridge.Index, MTU: underlayMTU},
		PeerName:      nodeEnd,
		PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return nodeNet{}, fmt.Errorf("add veth %s: %w", hubEnd, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return nodeNet{}, fmt.Errorf("bring up %s: %w", hubEnd, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nodeNet{}, fmt.Errorf("reach namespace of node %d: %w", i+1, err)
	}
	defer h.Close()
	for _, name := range []string{"lo", nodeEnd} {
		link, err := h.LinkByName(name)
		if err != nil {
			return nodeNet{}, fmt.Errorf("find %s of node %d: %w", name, i+1, err)
		}
		if name == nodeEnd {
			if err := h.AddrAdd(link, addrOf(ip)); err != nil {
				return nodeNet{}, fmt.Errorf("give node %d its address: %w", i+1, err)
			}
			if err := h.LinkSetMTU(link, underlayMTU); err != nil {
				return nodeNet{}, fmt.Errorf("make room for tunnels on node %d: %w", i+1, err)
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return nodeNet{}, fmt.Errorf("bring up %s of node %d: %w", name, i+1, err)
		}
	}
	n := nodeNet{ns: ns, addr: ip}
	u.nodes = append(u.nodes, n)
	return n, nil
}

// Close drops the handles; the namespaces live as long as processes in them.
func (u *underlay) Close() error {
	var errs []error
	for _, n := range u.nodes {
		errs = append(errs, n.ns.Close())
	}
	return errors.Join(errs...)
}

// newNamespace makes an unnamed network namespace and leaves the caller where
// it is.
func newNamespace() (netns.NsHandle, error) {
	var ns netns.NsHandle
	err := onThread(func() error {
		var err error
		ns, err = netns.New() // moves this thread into it
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("make network namespace: %w", err)
	}
	return ns, nil
}

// startIn starts cmd in a network namespace.
//
// The child inherits the namespace of the thread that forks (clone(2)), so the
// fork happens on a thread that was moved there and is thrown away afterwards.
func startIn(ns netns.NsHandle, cmd *exec.Cmd) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return cmd.Start()
	})
}

// onThread runs f on an operating system thread that ends with it: the runtime
// ends the thread of a goroutine that returns locked to it, except the main
// thread, which would stay in f's namespace and show it in /proc.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the main thread, another cannot get it.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// inOwnNamespace tells whether EnterNamespace has done its work.
func inOwnNamespace() bool { return os.Getenv(namespaceMark) == "1" }
