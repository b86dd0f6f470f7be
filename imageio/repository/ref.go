package repository

import (
	"fmt"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// Ref names an image: the ID of its root, and its size.
type Ref struct {
	ID   object.ID
	Size int64
}

func (ref Ref) String() string { return fmt.Sprintf("%s (%d bytes)", ref.ID, ref.Size) }

// RefOf names the image of an object of a manifest.
func RefOf(o manifest.Object) Ref { return Ref{ID: o.ID, Size: int64(o.SizeBytes)} }
