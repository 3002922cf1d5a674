package container

import (
	"sync"

	"escale.dev/escale/internal/sys/host"
)

// bootID identifies this boot of the kernel; empty where it cannot be read.
var bootID = sync.OnceValue(func() string {
	id, _ := host.BootID()
	return id
})

// pidStart is the start time of a process in clock ticks since boot, 0 when it is gone.
func pidStart(pid int) uint64 {
	t, _ := host.StartTime(pid)
	return t
}
