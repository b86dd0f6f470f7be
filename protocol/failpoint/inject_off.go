//go:build !failpoints

package failpoint

import (
	"context"
	"errors"
)

// Enabled tells whether points can be armed in this build.
const Enabled = false

// ErrDisabled is returned by Arm and ArmAll in a build without failpoints.
var ErrDisabled = errors.New("failpoints: built without the tag failpoints")

// Inject does nothing in this build.
func Inject(context.Context, Point) error { return nil }

// Arm fails in this build, so that no test believes that it has injected.
func Arm(Point, string) (disarm func(), err error) { return nil, ErrDisabled }

// ArmFile does nothing in this build.
func ArmFile(string) error { return nil }

// ArmAll fails in this build unless spec is empty.
func ArmAll(spec string) error {
	if spec == "" {
		return nil
	}
	return ErrDisabled
}
