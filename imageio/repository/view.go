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
	claimers map[epochKey]bool    // those rounds
	copied   map[epochKey]bool    // those of them that are copies or imports
	fresh    map[pack.ID]struct{} // named by a manifest that no earlier look has read
	moved    map[pack.ID]pack.ID  // where what is needed of a pack has gone
	stale    []string             // claims, damage records and temporary names that nobody needs
}

func (v *view) needs(id pack.ID) bool {
	_, live := v.live[id]
	_, claimed := v.claimed[id]
	return live || claimed
}

// look reads claims first and outcomes second: a claim that is not there any
// more had an outcome before, which is then seen. Last it looks which packs have
// moved, for who compacts gives a pack the new name before it looks for the new
// pack. Manifests that an earlier look has read are not read again; that one of
// them may have been deleted since only keeps packs longer. Checkpoints of
// without are taken for deleted.
func (r *Repository) look(ctx context.Context, earlier *view, without map[epochKey]bool) (*view, error) {
	claims, err := r.readClaims(ctx)
	if err != nil {
		return nil, err
	}
	v := &view{
		outcomes: map[epochKey]Outcome{}, live: map[pack.ID]struct{}{}, claimed: map[pack.ID]struct{}{},
		claimers: map[epochKey]bool{}, copied: map[epochKey]bool{}, fresh: map[pack.ID]struct{}{}, moved: map[pack.ID]pack.ID{},
	}
	if earlier != nil {
		maps.Copy(v.outcomes, earlier.outcomes)
		maps.Copy(v.live, earlier.live)
	}
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, cluster := range clusters {
		if err := r.lookAtCluster(ctx, cluster, v, without); err != nil {
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
		v.hold(c)
	}
	if err := r.lookAtMoves(ctx, v); err != nil {
		return nil, err
	}
	return v, nil
}

// lookAtMoves makes live what needed packs have moved to.
func (r *Repository) lookAtMoves(ctx context.Context, v *view) error {
	files, err := r.listPacks(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.state == packMoved {
			v.moved[f.id] = f.to
		}
	}
	for id := range v.moved {
		if !v.needs(id) {
			continue
		}
		hops := 0
		for to, ok := v.moved[id]; ok && hops < maxMoves; to, ok = v.moved[to] {
			v.live[to] = struct{}{}
			if _, fresh := v.fresh[id]; fresh {
				v.fresh[to] = struct{}{}
			}
			hops++
		}
	}
	return nil
}

func (r *Repository) lookAtCluster(ctx context.Context, cluster string, v *view, without map[epochKey]bool) error {
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
		if rec.outcome == OutcomeCommitted && !without[e] {
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
		if epoch, ok := parseDamageName(name); ok && v.outcomes[epochKey{cluster, epoch}] == OutcomeDeleted {
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
		v.fresh[id] = struct{}{}
	}
	return nil
}
