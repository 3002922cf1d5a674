package rtnl

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds how often a list is asked for again because it changed while
// the kernel told it.
const dumpTries = 20

// Whole asks for a list until the kernel tells it whole: links and addresses
// come and go on a busy machine, and the kernel says so by NLM_F_DUMP_INTR
// (netlink(7)). The last answer is returned with its error when it never is.
func Whole[T any](list func() ([]T, error)) ([]T, error) {
	var all []T
	var err error
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}
