package driver

import (
	"errors"
	"fmt"
)

// As finds the optional action T on sb, looking through wrappers that have an Unwrap() Sandbox method. Never assert
// the type of a Sandbox: a wrapper would hide the action. errors.ErrUnsupported if no layer has it.
func As[T any](sb Sandbox) (T, error) {
	for sb != nil {
		if t, ok := sb.(T); ok {
			return t, nil
		}
		w, ok := sb.(interface{ Unwrap() Sandbox })
		if !ok {
			break
		}
		sb = w.Unwrap()
	}
	var none T
	return none, fmt.Errorf("%T: %w", (*T)(nil), errors.ErrUnsupported)
}
