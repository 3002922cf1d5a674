package native

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var updateOptions = options{"resources": true, "memory": true, "memory-reservation": true, "memory-swap": true, "cpu-period": true, "cpu-quota": true, "cpu-share": true,
	"cpu-burst": true, "cpuset-cpus": true, "cpuset-mems": true, "pids-limit": true, "blkio-weight": true}

func readAll(name string, in io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

// limitsOf reads the limits that stand in options, as runc has them.
func limitsOf(o values, r *specs.LinuxResources) error {
	var failed error
	given := func(name string, err error) bool {
		if err != nil && o.text(name, "") != "" {
			failed = fmt.Errorf("invalid value for %s: %w", name, err)
		}
		return o.text(name, "") != ""
	}
	number := func(name string) *int64 {
		n, err := strconv.ParseInt(o.text(name, ""), 10, 64)
		if !given(name, err) {
			return nil
		}
		return &n
	}
	unsigned := func(name string, bits int) *uint64 {
		n, err := strconv.ParseUint(o.text(name, ""), 10, bits)
		if !given(name, err) {
			return nil
		}
		return &n
	}
	r.Memory = &specs.LinuxMemory{Limit: number("memory"), Reservation: number("memory-reservation"), Swap: number("memory-swap")}
	r.CPU = &specs.LinuxCPU{Shares: unsigned("cpu-share", 64), Quota: number("cpu-quota"), Period: unsigned("cpu-period", 64), Burst: unsigned("cpu-burst", 64),
		Cpus: o.text("cpuset-cpus", ""), Mems: o.text("cpuset-mems", "")}
	if n := number("pids-limit"); n != nil {
		r.Pids = &specs.LinuxPids{Limit: n}
	}
	if n := unsigned("blkio-weight", 16); n != nil {
		w := uint16(*n)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	return failed
}
