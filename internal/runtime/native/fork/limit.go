package fork

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// given is the limit of open files that this process was started with (RLIMIT_NOFILE).
// Go raises the soft one for itself and puts it back when it starts programs, but not for
// who is forked here. It cannot be asked for; an execve that comes to nothing puts it back
// too. From the first call on Go's own ways hand on the raised one.
var given = sync.OnceValues(func() (limit unix.Rlimit, err error) {
	var raised syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return limit, fmt.Errorf("limit of open files: %w", err)
	}
	_ = syscall.Exec("", []string{""}, nil) // there is no such program
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return limit, fmt.Errorf("limit of open files: %w", err)
	}
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return limit, fmt.Errorf("limit of open files: %w", err)
	}
	return limit, nil
})
