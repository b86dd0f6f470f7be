// Package faultgrpc carries error classes (package fault) over gRPC.
//
// It is the one place that maps a class to a status and back. The status code
// is for tools that know nothing of Fermata; the class itself travels in an
// ErrorInfo detail. A status without that detail did not come from a handler
// but from the transport, or from a server that is not ours.
//
// Servers and clients install ServerOptions and DialOptions and never map
// errors themselves.
package faultgrpc

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fermata/protocol/fault"
)

// domain marks an ErrorInfo as ours.
const domain = "fermata"

// maxMessage bounds the message in a status, which travels in HTTP/2 trailers
// (twice, also inside the details); peers and proxies cap those at 8 KiB and more.
const maxMessage = 2 << 10

// codeOf maps a class to the status code that says it best. Classes may share
// a code, as the class itself travels too.
func codeOf(c fault.Class) codes.Code {
	switch c {
	case fault.None:
		return codes.OK
	case fault.Invalid:
		return codes.InvalidArgument
	case fault.NotFound:
		return codes.NotFound
	case fault.Exists:
		return codes.AlreadyExists
	case fault.Stale, fault.Busy, fault.Mismatch:
		return codes.FailedPrecondition
	case fault.Unavailable:
		return codes.Unavailable
	case fault.NoSpace:
		return codes.ResourceExhausted
	case fault.Corrupt:
		return codes.DataLoss
	case fault.Aborted:
		return codes.Aborted
	case fault.Deadline:
		return codes.DeadlineExceeded
	case fault.Unknown:
		return codes.Unknown
	case fault.Denied:
		return codes.PermissionDenied
	default:
		return codes.Internal
	}
}

// To turns the error of a handler into a status error with its class. A nil
// error stays nil; a status that carries a class already is returned as it is.
func To(err error) error {
	if err == nil {
		return nil
	}
	class := fault.ClassOf(err)
	var classified *fault.Error
	if st, ok := status.FromError(err); ok && !errors.As(err, &classified) {
		if _, carried := carriedClass(st); carried {
			return err
		}
		class = classOfBare(st)
	}
	st := status.New(codeOf(class), clip(err.Error()))
	withClass, detailErr := st.WithDetails(&errdetails.ErrorInfo{Reason: class.String(), Domain: domain, Metadata: hintOf(err)})
	if detailErr != nil {
		return st.Err()
	}
	return withClass.Err()
}

// From turns the error of a call into one with a class.
//
// An answer of the other side has the class it was given there. A status from
// the transport is Unknown, as the call may have been served, unless it shows
// that the call was never sent (Unavailable) or never let in (Denied,
// Invalid). errors.Is finds context.Canceled and context.DeadlineExceeded in an
// error that the caller's own context caused. An error that is no status is
// returned as it is.
func From(err error) error {
	var classified *fault.Error
	if err == nil || errors.As(err, &classified) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if class, carried := carriedClass(st); carried {
		return fault.Hinted(fault.New(class, "%s", st.Message()), carriedHint(st))
	}
	switch st.Code() {
	case codes.Canceled:
		return fault.Wrap(fault.Unknown, context.Canceled, "no answer")
	case codes.DeadlineExceeded:
		return fault.Wrap(fault.Unknown, context.DeadlineExceeded, "no answer")
	}
	return fault.New(classOfBare(st), "%s", st.Message())
}

// hintKey is where an ErrorInfo carries what to do next.
const hintKey = "hint"

// hintOf is the hint of err as it travels; nil if it has none of its own.
func hintOf(err error) map[string]string {
	hint := fault.HintOf(err)
	if hint == "" || hint == fault.ClassOf(err).Hint() {
		return nil
	}
	return map[string]string{hintKey: clip(hint)}
}

func carriedHint(st *status.Status) string {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info.GetMetadata()[hintKey]
		}
	}
	return ""
}

// carriedClass returns the class that To put into st.
func carriedClass(st *status.Status) (fault.Class, bool) {
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != domain {
			continue
		}
		class, err := fault.ParseClass(info.GetReason())
		if err != nil || class == fault.None {
			// A newer peer with classes we do not know still answered.
			return fault.Internal, true
		}
		return class, true
	}
	return fault.None, false
}

// neverSent are the texts by which gRPC reports that no connection could be
// made, so that the call did not leave this process. The text is no promise of
// gRPC's; if it changes, the class falls back to Unknown, which is always safe.
// See TestFrom_Transport.
var neverSent = []string{
	"transport: Error while dialing",
	"transport: authentication handshake failed",
	"error reading server preface",
}

func classOfBare(st *status.Status) fault.Class {
	switch st.Code() {
	case codes.OK:
		return fault.None
	case codes.InvalidArgument, codes.Unimplemented:
		return fault.Invalid
	case codes.PermissionDenied, codes.Unauthenticated:
		return fault.Denied
	case codes.Unavailable:
		for _, text := range neverSent {
			if strings.Contains(st.Message(), text) {
				return fault.Unavailable
			}
		}
	}
	return fault.Unknown
}

// clip makes s fit for a status: valid UTF-8, as protobuf demands, and at most
// maxMessage bytes.
func clip(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(s, "")
}
