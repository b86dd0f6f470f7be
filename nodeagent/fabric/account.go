package fabric

// All queues of a fabric, and what cuts record, share Config.TotalBytes of memory: a gated
// NIC may hold a lot, but not every NIC of a node at the same time.
//
// While the fabric is tight no queue takes more than it may while it is open, so those who
// send wait: backpressure reaches the guests, whose rings fill. A cut that would have to
// record more then ends with ErrChannelFull. Beyond the total are at most what queues may
// hold while they are open, and what a cut drains from sockets, which must not wait.

// charge counts bytes of frames that are taken into memory, or with n < 0 let go.
func (f *Fabric) charge(n int) { f.used.Add(int64(n)) }

// tight reports whether the fabric holds as many bytes as it may.
func (f *Fabric) tight() bool { return f.used.Load() >= f.total.Load() }

// SetTotalBytes changes Config.TotalBytes; 0: the default. If more is held already, it
// leaves in its time.
func (f *Fabric) SetTotalBytes(n int64) {
	if n == 0 {
		n = DefaultTotalBytes
	}
	f.total.Store(n)
}

// Used is how many bytes of memory the fabric's frames take, with their overhead.
func (f *Fabric) Used() int64 { return f.used.Load() }

// record records a frame for the cut that is open, if it is older than epoch.
//
// Preconditions: mu is held.
func (p *Port) record(fr frame, epoch uint64) {
	limit := p.recordLimit()
	if p.fabric.tight() {
		limit = 0
	}
	before := p.channel.bytes
	p.channel.take(fr, epoch, limit)
	p.fabric.charge(p.channel.bytes - before)
}

// resetChannel begins a recording, or drops one.
//
// Preconditions: mu is held.
func (p *Port) resetChannel(open bool) {
	p.fabric.charge(-p.channel.bytes)
	p.channel = channel{open: open}
}
