package labrun

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"fermata/experiments/guests"
)

const bootBudget = 10 * time.Minute

// BringGuests creates and starts a cluster of the guests of app, each with memoryMiB
// and one card, all on one network, and waits until working says of every console
// that its guest is at work. guestDir holds their image.
func (s *Scratch) BringGuests(ctx context.Context, clusterName, guestDir string, memoryMiB int, app guests.Cluster, working func(console []byte) bool) error {
	guestDir, err := filepath.Abs(guestDir)
	if err != nil {
		return err
	}
	if err := app.Validate(); err != nil {
		return fmt.Errorf("describe guests: %w", err)
	}
	kernel, initrd := guests.ImageFiles(guestDir)
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\ndefaults:\n  accel: tcg\n  memory: %dMiB\n", clusterName, memoryMiB)
	fmt.Fprintf(&b, "  kernel: %s\n  initrd: %s\n  nics:\n    - network: lan\nguests:\n", kernel, initrd)
	for i := 1; i <= app.Count; i++ {
		fmt.Fprintf(&b, "  - name: %s\n    cmdline: %q\n", guests.Name(i), app.Cmdline(i))
	}
	if err := s.Bring(ctx, clusterName, b.String()); err != nil {
		return err
	}
	consoles := Consoles{Lab: s.Lab, Cluster: clusterName, Count: app.Count}
	return consoles.Await(ctx, bootBudget, "all guests to be at work", func(all map[string][]byte) (bool, error) {
		for _, console := range all {
			if !working(console) {
				return false, nil
			}
		}
		return true, nil
	})
}
