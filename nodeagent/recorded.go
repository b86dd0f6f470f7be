package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"fermata/imageio/vfs"
	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// recordedPath is the file that keeps the frames recorded for a card until its guest is
// released. The switch may be lost in between, and the repository may be unreachable
// when its successor starts.
func recordedPath(dir, card string) string { return filepath.Join(dir, "recorded-"+card) }

// injectRecorded puts the frames that the image recorded to the front of the guest's
// closed gates.
func (m *maker) injectRecorded(ctx context.Context) error {
	a, g := m.agent, m.guest
	for _, n := range g.nics {
		obj := findObject(m.image, kindChannel, n.Name)
		if obj == nil {
			continue // recorded nothing, or not recorded
		}
		b, err := m.readBytes(ctx, obj, maxChannelState)
		if err != nil {
			return fmt.Errorf("read channel state of %s: %w", n.Name, err)
		}
		count, err := a.inject(g, n, b)
		if err != nil {
			return err
		}
		g.injected += count
		if err := vfs.WriteFile(vfs.OS{}, recordedPath(g.dir, n.Name), b); err != nil {
			return fmt.Errorf("keep channel state of %s: %w", n.Name, err)
		}
	}
	if err := (vfs.OS{}).SyncDir(g.dir); err != nil {
		return fmt.Errorf("keep channel state of guest %s: %w", g.spec.Name, err)
	}
	return nil
}

// injectKept injects again what injectRecorded has injected for a card into a data plane
// that is no more, and returns how many frames that are.
//
// Preconditions: the guest was not released since, so its gates were never open and no
// frame of these has reached it.
func (a *Agent) injectKept(g *guest, n *api.NICSpec) (uint64, error) {
	b, err := os.ReadFile(recordedPath(g.dir, n.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read channel state of %s: %w", n.Name, err)
	}
	return a.inject(g, n, b)
}

func (a *Agent) inject(g *guest, n *api.NICSpec, encoded []byte) (uint64, error) {
	recorded, err := fabric.DecodeFrames(encoded)
	if err != nil {
		return 0, fault.Wrap(fault.Corrupt, err, "channel state of %s", n.Name)
	}
	if err := a.plane.Inject(g.cluster, fabric.PortKey{Guest: g.spec.Name, NIC: n.Name}, recorded); err != nil {
		return 0, fmt.Errorf("inject channel state of %s: %w", n.Name, err)
	}
	return uint64(len(recorded)), nil
}

// dropRecorded removes what injectRecorded has kept. What is left of it does no harm: it
// goes with the guest.
func (g *guest) dropRecorded() {
	for _, n := range g.nics {
		_ = os.Remove(recordedPath(g.dir, n.Name))
	}
}
