package store

import (
	"bytes"
	"maps"
)

// Clone returns a copy that shares nothing with c.
func (c Cluster) Clone() Cluster {
	c.Spec = bytes.Clone(c.Spec)
	c.Assignments = maps.Clone(c.Assignments)
	return c
}

// Clone returns a copy that shares nothing with o.
func (o Operation) Clone() Operation {
	o.Phase = bytes.Clone(o.Phase)
	return o
}

// Changed applies change to a copy of c and checks the result. What a change
// may not touch is as it was.
func (c Cluster) Changed(change func(*Cluster) error) (Cluster, error) {
	next := c.Clone()
	if change == nil {
		return next, nil
	}
	if err := change(&next); err != nil {
		return Cluster{}, err
	}
	next.Name, next.Spec, next.Created, next.Epoch = c.Name, c.Spec, c.Created, c.Epoch
	if err := next.Validate(); err != nil {
		return Cluster{}, err
	}
	return next, nil
}
