package fabric

// channel is what is recorded for a NIC of one cut: the frames sent before their
// senders' points that the guest had not received at its own.
type channel struct {
	open   bool // frames are recorded
	full   bool // there were more than the limit: what is recorded is not all
	bytes  int  // cost of frames
	frames [][]byte
}

// take records fr if it is older than the guest's epoch. What is recorded is still
// delivered.
func (c *channel) take(fr frame, epoch uint64, limit int) {
	if !c.open || fr.epoch >= epoch || c.full {
		return
	}
	if c.bytes+fr.cost() > limit {
		c.full, c.frames, c.bytes = true, nil, 0
		return
	}
	c.bytes += fr.cost()
	c.frames = append(c.frames, fr.data)
}
