package repository

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// GuestDiff says how one guest differs between two checkpoints.
type GuestDiff struct {
	Guest   string
	Added   bool // only the second checkpoint has it
	Removed bool // only the first has
	Images  []ImageDiff
}

// ImageDiff says how one image of a guest differs.
type ImageDiff struct {
	Kind         manifest.Kind
	Name         string
	SizeA, SizeB int64 // 0 where there is none
	ChangedBytes int64 // pages that differ, or that only one has; zeros are pages
}

// Diff compares two checkpoints, of one cluster or of two, guest by guest and
// image by image. It reads the trees of images, not their pages, and leaves out
// what is equal. The order is that of the names.
//
// On error: ErrCorrupt if a tree cannot be read.
func (r *Repository) Diff(ctx context.Context, a, b *manifest.Manifest) ([]GuestDiff, error) {
	diffs, err := r.diff(ctx, a, b)
	if err != nil {
		return nil, fmt.Errorf("compare %s@%d with %s@%d: %w", a.Cluster, a.Epoch, b.Cluster, b.Epoch, err)
	}
	return diffs, nil
}

func (r *Repository) diff(ctx context.Context, a, b *manifest.Manifest) ([]GuestDiff, error) {
	rdA, err := r.NewReader(ctx, a.Packs)
	if err != nil {
		return nil, err
	}
	rdB, err := r.NewReader(ctx, b.Packs)
	if err != nil {
		return nil, err
	}
	type pair struct{ a, b *manifest.Guest }
	guests := map[string]pair{}
	for i := range a.Guests {
		guests[a.Guests[i].Name] = pair{a: &a.Guests[i]}
	}
	for i := range b.Guests {
		p := guests[b.Guests[i].Name]
		p.b = &b.Guests[i]
		guests[b.Guests[i].Name] = p
	}
	var diffs []GuestDiff
	for name, p := range guests {
		d := GuestDiff{Guest: name, Added: p.a == nil, Removed: p.b == nil}
		if d.Images, err = diffGuest(ctx, rdA, rdB, p.a, p.b); err != nil {
			return nil, fmt.Errorf("guest %s: %w", name, err)
		}
		if len(d.Images) > 0 || d.Added || d.Removed {
			diffs = append(diffs, d)
		}
	}
	slices.SortFunc(diffs, func(x, y GuestDiff) int { return cmp.Compare(x.Guest, y.Guest) })
	return diffs, nil
}

func diffGuest(ctx context.Context, rdA, rdB *Reader, a, b *manifest.Guest) ([]ImageDiff, error) {
	type key struct {
		kind manifest.Kind
		name string
	}
	type pair struct{ a, b *Ref }
	images := map[key]pair{}
	if a != nil {
		for _, o := range a.Objects {
			ref := RefOf(o)
			images[key{o.Kind, o.Name}] = pair{a: &ref}
		}
	}
	if b != nil {
		for _, o := range b.Objects {
			ref, k := RefOf(o), key{o.Kind, o.Name}
			p := images[k]
			p.b = &ref
			images[k] = p
		}
	}
	var diffs []ImageDiff
	for k, p := range images {
		d := ImageDiff{Kind: k.kind, Name: k.name}
		if p.a != nil {
			d.SizeA = p.a.Size
		}
		if p.b != nil {
			d.SizeB = p.b.Size
		}
		if p.a != nil && p.b != nil && p.a.ID == p.b.ID {
			continue
		}
		var err error
		if d.ChangedBytes, err = changedBytes(ctx, rdA, rdB, p.a, p.b); err != nil {
			return nil, fmt.Errorf("%s %s: %w", k.kind, k.name, err)
		}
		diffs = append(diffs, d)
	}
	slices.SortFunc(diffs, func(x, y ImageDiff) int { return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name)) })
	return diffs, nil
}

// changedBytes counts the pages that differ between two images, of which one may
// be nil.
func changedBytes(ctx context.Context, rdA, rdB *Reader, a, b *Ref) (n int64, err error) {
	if a == nil {
		return b.Size, nil
	}
	if b == nil {
		return a.Size, nil
	}
	leavesA, err := rdA.leaves(ctx, *a)
	if err != nil {
		return 0, err
	}
	leavesB, err := rdB.leaves(ctx, *b)
	if err != nil {
		return 0, err
	}
	common := min(a.Size, b.Size)
	n = max(a.Size, b.Size) - common
	for first := 0; int64(first)*object.LeafBytes < common; first += windowLeaves {
		end := min(first+windowLeaves, object.LeafCount(common))
		// What is equal is not read.
		partA, partB := slices.Clone(leavesA[first:end]), slices.Clone(leavesB[first:end])
		for i := range partA {
			if partA[i] == partB[i] {
				partA[i], partB[i] = object.ID{}, object.ID{}
			}
		}
		pagesA, err := rdA.below(ctx, partA, object.KindLeaf, a.pagesBelow(first, end), nil)
		if err != nil {
			return 0, err
		}
		pagesB, err := rdB.below(ctx, partB, object.KindLeaf, b.pagesBelow(first, end), nil)
		if err != nil {
			return 0, err
		}
		off := int64(first) * object.LeafBytes
		for i := 0; i < len(pagesA) && off < common; i++ {
			if pagesA[i] != pagesB[i] {
				n += min(object.PageBytes, common-off)
			}
			off += object.PageBytes
		}
	}
	return n, nil
}
