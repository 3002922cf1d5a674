// Package stats reads what the processes of a cgroup use: CPU time, memory,
// block devices, processes, and the traffic of the network interfaces they see.
// It knows both versions of control groups and gives the figures in the
// Docker API's type, by the names that clients compute with.
//
// The sources are the kernel's admin-guide/cgroup-v1 (memory, cpuacct,
// blkio-controller, pids), admin-guide/cgroup-v2.rst, and proc(5).
package stats

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/sys/cgroup"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Reader reads figures on a machine with the cgroups that it is made with.
type Reader struct {
	cgroups cgroup.Info
	root    string // before /proc, for tests
	now     func() time.Time
}

// New makes a Reader; nothing is read.
func New(i cgroup.Info) *Reader { return &Reader{cgroups: i, now: time.Now} }

// Target is whose figures are wanted.
type Target struct {
	Cgroup string   // its path below the hierarchies' mount points, "/docker/<id>"
	Pid    int      // a process in its network namespace; 0: no network
	Links  []string // interfaces to tell of, by their name in there
}

// Read takes one sample. What the kernel does not count is zero; NotExist tells
// that the cgroup is gone. Reads some 15 small files. Id and name are the caller's.
func (r *Reader) Read(t Target) (*container.StatsResponse, error) {
	s := &container.StatsResponse{OSType: "linux", Read: r.now().UTC()}
	var err error
	if r.cgroups.Mode == cgroup.Unified {
		err = r.readUnified(s, t.Cgroup)
	} else {
		err = r.readLegacy(s, t.Cgroup)
	}
	if err != nil {
		return nil, err
	}
	total, err := r.memTotal()
	if err != nil {
		return nil, err
	}
	if m := &s.MemoryStats; m.Limit > total || m.Limit == 0 && m.Usage > 0 {
		m.Limit = total // none set: the machine's memory is the limit
	}
	b, err := r.proc("stat")
	if err != nil {
		return nil, err
	}
	s.CPUStats.SystemUsage, s.CPUStats.OnlineCPUs = parseSystem(string(b))
	s.Networks, err = r.networks(t)
	return s, err
}

func (r *Reader) proc(path string) ([]byte, error) {
	return os.ReadFile(filepath.Join(r.root, "/proc", path))
}

func (r *Reader) memTotal() (uint64, error) {
	b, err := r.proc("meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb := parseNumber(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kb << 10, nil
		}
	}
	return 0, nil
}

// networks reads the counters of the target's interfaces; nil without any.
func (r *Reader) networks(t Target) (map[string]container.NetworkStats, error) {
	if t.Pid <= 0 || len(t.Links) == 0 {
		return nil, nil
	}
	b, err := r.proc(strconv.Itoa(t.Pid) + "/net/dev")
	if err != nil {
		// A process that has just ended has no namespace any more.
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
			err = fs.ErrNotExist
		}
		return nil, err
	}
	all := parseNetDev(string(b))
	out := make(map[string]container.NetworkStats, len(t.Links))
	for _, name := range t.Links {
		if n, ok := all[name]; ok {
			out[name] = n
		}
	}
	return out, nil
}

// dir is a directory of a cgroup. Its readers give zero for a file that is not
// there: a kernel without that figure.
type dir string

func (d dir) text(file string) (string, error) {
	if d == "" {
		return "", nil
	}
	b, err := os.ReadFile(filepath.Join(string(d), file))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return "", nil
	case errors.Is(err, unix.ENODEV): // the cgroup was removed while the file was read
		return "", fs.ErrNotExist
	}
	return string(b), err
}

func (d dir) number(file string, to *uint64) error {
	s, err := d.text(file)
	*to = parseNumber(strings.TrimSpace(s))
	return err
}

func (d dir) table(file string) (map[string]uint64, error) {
	s, err := d.text(file)
	if s == "" || err != nil {
		return nil, err
	}
	return parseTable(s), nil
}
