package fabric

import "errors"

var (
	// ErrUndrained means that a guest did not take its frames in time.
	ErrUndrained = errors.New("guest has not taken its frames")
	// ErrNotGated means that a NIC must be gated for what was asked.
	ErrNotGated = errors.New("not gated")
	// ErrNotDrained means that frames that guests have sent are not switched yet.
	ErrNotDrained = errors.New("egress is not drained")
	// ErrStale means an epoch that is not after the cluster's, or a cut that
	// another has replaced.
	ErrStale = errors.New("stale epoch")
	// ErrOrphan means that a guest of this node has already received a frame sent
	// after its sender's point on the cut: the cut cannot be consistent any more.
	ErrOrphan = errors.New("frame of the new epoch already delivered")
	// ErrNotCut means that a guest of this node has no point on the cut yet.
	ErrNotCut = errors.New("guest is not cut")
	// ErrChannelFull means that more frames were in flight at the cut than may be
	// recorded for one NIC.
	ErrChannelFull = errors.New("too many frames in flight to record")
	// ErrChannelsOpen means that a marker is still missing.
	ErrChannelsOpen = errors.New("channels are still open")
	// ErrUnknownCluster means that the fabric has no cluster of that name.
	ErrUnknownCluster = errors.New("unknown cluster")
	// ErrUnknownNetwork means that no guest of this node has a NIC there.
	ErrUnknownNetwork = errors.New("unknown network")
	// ErrUnknownNIC means that the guest has no NIC of that name on this node.
	ErrUnknownNIC = errors.New("unknown network card")
	// ErrExists means that the name is taken.
	ErrExists = errors.New("exists")
	// ErrClosed means that the fabric, cluster or port has ended.
	ErrClosed = errors.New("closed")
	// ErrMalformed means bytes that no fabric has written.
	ErrMalformed = errors.New("malformed")
)
