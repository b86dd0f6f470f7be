package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fermata/protocol/fault"
)

// Explain says in words why etcd did not do what was asked of it, and where it is.
// The class of the result is that of a request which changed nothing.
func Explain(endpoints []string, err error) error {
	at := "etcd at " + strings.Join(endpoints, ", ")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fault.Wrap(fault.NoSpace, err, "%s has used up its space and refuses every write (alarm NOSPACE); compact its history, defragment it, then disarm the alarm with etcdctl", at)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fault.Wrap(fault.Denied, err, "%s: the user lacks a role with read and write permission on the keys below the prefix", at)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fault.Wrap(fault.Denied, err, "%s wants a user: set etcd.username and etcd.password_file", at)
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		return fault.Wrap(fault.Denied, err, "%s refuses the user or the password", at)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fault.Wrap(fault.Invalid, err, "%s", at)
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded, status.Code(err) == codes.Unavailable:
		return fault.New(fault.Unavailable, "the coordinator cannot reach %s (%w); guests keep running", at, err)
	}
	return fault.Wrap(fault.Unavailable, err, "%s", at)
}

// readError classifies the error of a request that changes nothing.
func (s *Store) readError(err error, what string) error {
	return fmt.Errorf("%s: %w", what, Explain(s.client.Endpoints(), err))
}

// writeError classifies the error of a request that may have changed
// something. Only what etcd refuses before it proposes is certain.
func (s *Store) writeError(err error, what string) error {
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return err // PutNode asks for a new lease
	}
	explained := Explain(s.client.Endpoints(), err)
	if fault.ClassOf(explained) == fault.Unavailable {
		return fault.Wrap(fault.Unknown, explained, "%s", what)
	}
	return fmt.Errorf("%s: %w", what, explained)
}
