package nodeagent

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// makeCards makes a socket pair for each NIC and joins its near end to the
// switch, with closed ingress; or a TAP device on a bridge of the node, which the
// switch knows nothing of.
func (m *maker) makeCards() ([]qemu.NIC, error) {
	g := m.guest
	var cards []qemu.NIC
	for _, spec := range g.spec.Nics {
		if spec.Bridge != "" {
			tap, err := m.agent.openTAP(spec.Bridge, spec.Mtu)
			if err != nil {
				return cards, fmt.Errorf("card %s: %w", spec.Name, err)
			}
			cards = append(cards, qemu.NIC{Name: spec.Name, MAC: spec.Mac, MTU: int(spec.Mtu), TAP: true, File: tap})
			continue
		}
		near, far, err := fabric.NewPair()
		if err != nil {
			return nil, err
		}
		// QEMU inherits both ends, so the pair outlives this agent. The switch
		// takes the files over; QEMU gets copies.
		card := qemu.NIC{Name: spec.Name, MAC: spec.Mac, MTU: int(spec.Mtu)}
		if card.File, err = dupFile(far); err == nil {
			card.Keep, err = dupFile(near)
		}
		cards = append(cards, card)
		if err != nil {
			return cards, errors.Join(err, near.Close(), far.Close())
		}
		if err := m.agent.joinCard(g, spec, near, far); err != nil {
			return cards, err
		}
		g.nics = append(g.nics, spec)
	}
	return cards, nil
}

// dupFile returns a second descriptor of f. It must not use f.Fd, which may
// change the file's mode for all who share it.
func dupFile(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), err)
	}
	if dupErr != nil {
		return nil, fmt.Errorf("copy descriptor of %s: %w", f.Name(), dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeCards(cards []qemu.NIC) error {
	var errs []error
	for _, c := range cards {
		for _, f := range []*os.File{c.File, c.Keep} {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// joinCard joins one card to its network, gated. The data plane owns both files
// from here on.
func (a *Agent) joinCard(g *guest, spec *api.NICSpec, near, far *os.File) error {
	mac, err := net.ParseMAC(spec.Mac)
	if err != nil {
		return errors.Join(fault.Wrap(fault.Invalid, err, "card %s", spec.Name), near.Close(), far.Close())
	}
	err = a.plane.Join(fabric.PortConfig{
		Cluster: g.cluster, Network: spec.Network, Guest: g.spec.Name, NIC: spec.Name,
		MAC: mac, FabricEnd: near, GuestEnd: far, Gated: true,
	})
	if errors.Is(err, fabric.ErrExists) {
		return fault.Wrap(fault.Invalid, err, "")
	}
	return err
}
