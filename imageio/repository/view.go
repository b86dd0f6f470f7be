package repository

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"

	"fermata/imageio/manifest"
	"fermata/imageio/pack"
)

// view is what one look at claims and outcomes tells. It takes memory for the
// names of packs, not for what is in them.
type view struct {
	outcomes map[epochKey]Outcome
	live     map[pack.ID]struct{} // named by a manifest
	claimed  map[pack.ID]struct{} // claimed by a round without an outcome
	stale    []string             // claims and temporary names that nobody needs
}

func (v *view) needs(id pack.ID) bool {
	_, live := v.live[id]
	_, claimed := v.claimed[id]
	return live || claimed
}

// look reads claims first and outcomes second: a claim that is not there any
// more had an outcome before, which is then seen. Manifests that an earlier
// look has read are not read again; that one of them may have been deleted
// since only keeps packs longer.
func (r *Repository) look(ctx context.Context, earlier *view) (*view, error) {
	claims, err := r.readClaims(ctx)
	if err != nil {
		return nil, err
	}
	v := &view{outcomes: map[epochKey]Outcome{}, live: map[pack.ID]struct{}{}, claimed: map[pack.ID]struct{}{}}
	if earlier != nil {
		maps.Copy(v.outcomes, earlier.outcomes)
		maps.Copy(v.live, earlier.live)
	}
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, cluster := range clusters {
		if err := r.lookAtCluster(ctx, cluster, v); err != nil {
			return nil, err
		}
	}
	for _, c := range claims {
		if v.outcomes[c.epoch] != OutcomeNone {
			v.stale = append(v.stale, c.path)
			continue
		}
		if c.temp {
			continue // its writer has not looked for its packs yet
		}
		if c.err != nil {
			return nil, fmt.Errorf("claim of %s: %w", c.epoch, c.err)
		}
		for _, id := range c.packs {
			v.claimed[id] = struct{}{}
		}
	}
	return v, nil
}

func (r *Repository) lookAtCluster(ctx context.Context, cluster string, v *view) error {
	names, err := r.listDir(r.clusterDir(cluster))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		epoch, ok := parseOutcomeName(name)
		e := epochKey{cluster, epoch}
		if !ok || v.outcomes[e] != OutcomeNone {
			continue
		}
		rec, err := r.readOutcome(e)
		if err != nil {
			return err
		}
		v.outcomes[e] = rec.outcome
		if rec.outcome == OutcomeCommitted {
			if err := v.addLive(rec.manifest); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		t, ok := parseTempName(name)
		outcome := v.outcomes[epochKey{cluster, t.epoch}]
		if ok && (outcome == OutcomeDeleted || outcome != OutcomeNone && !t.buries) {
			v.stale = append(v.stale, filepath.Join(r.clusterDir(cluster), name))
		}
	}
	return nil
}

func (v *view) addLive(m *manifest.Manifest) error {
	for _, s := range m.Packs {
		id, err := pack.ParseID(s)
		if err != nil {
			return err
		}
		v.live[id] = struct{}{}
	}
	return nil
}
