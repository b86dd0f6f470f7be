package etcdstore

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"fermata/protocol/fault"
)

// readError classifies the error of a request that changes nothing.
func readError(err error, what string) error {
	return fault.Wrap(fault.Unavailable, err, "%s: ask etcd", what)
}

// writeError classifies the error of a request that may have changed
// something. Only what etcd refuses before it proposes is certain.
func writeError(err error, what string) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.Wrap(fault.NoSpace, err, "%s", what)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fault.Wrap(fault.Invalid, err, "%s", what)
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty):
		return fault.Wrap(fault.Denied, err, "%s", what)
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return err // PutNode asks for a new lease
	default:
		return fault.Wrap(fault.Unknown, err, "%s: no answer from etcd", what)
	}
}
