package container

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
)

// bootID identifies this boot of the kernel
// (Documentation/admin-guide/sysctl/kernel.rst, random/boot_id).
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// pidStart is the start time of a process in clock ticks since boot, 0 when it
// is gone: proc(5), /proc/pid/stat, field 22.
func pidStart(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	i := bytes.LastIndexByte(b, ')') // the name may hold anything
	if i < 0 {
		return 0
	}
	fields := bytes.Fields(b[i+1:])
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	return n
}
