// Package layer unpacks the tar of an image layer into a directory that
// overlayfs will use, reads compressed streams, and feeds one stream to several
// readers at once.
//
// The tar is foreign: nothing it says may touch what lies outside the
// directory, and what it may cost is bounded by Limits. Format:
// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md.
//
// Needs openat2(2): Linux 5.6.
package layer

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Bounds of a layer where Limits says nothing.
const (
	DefaultBytes   = 256 << 30 // of a layer's tar, and of the files it makes
	DefaultEntries = 4 << 20   // headers in the tar
	maxNames       = 256 << 20 // bytes of directory names kept in memory
)

// SpaceStep is how many bytes are written between two calls of Limits.Space.
const SpaceStep = 32 << 20

// Limits bound what a layer may cost. The zero value means the defaults.
type Limits struct {
	Bytes   int64
	Entries int64
	// Space is asked before the first and after every SpaceStep bytes whether
	// the disk has room for more; nil: never.
	Space func() error
}

func (l Limits) bytes() int64 {
	if l.Bytes > 0 {
		return l.Bytes
	}
	return DefaultBytes
}

func (l Limits) entries() int64 {
	if l.Entries > 0 {
		return l.Entries
	}
	return DefaultEntries
}

// errTooBig tells that a stream or its files pass Limits.Bytes.
func errTooBig(limit int64) error {
	return fmt.Errorf("layer: unpacks to more than %d bytes: %w", limit, errdefs.ErrResourceExhausted)
}

// errStopped tells a reader that its siblings ended in an error.
var errStopped = errors.New("layer: reading was stopped")
