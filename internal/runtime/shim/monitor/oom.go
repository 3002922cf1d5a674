package monitor

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// oomWatch knows what the kernel's OOM killer did in the container's cgroup. The count
// is in memory.oom_control of cgroup v1 and memory.events of v2, as long as nobody
// removes the cgroup. systemd does so once it is empty, perhaps before we hear of the
// end; so that of v2 is read whenever the kernel says that it has changed. What it says
// comes up to 10 ms late (cgroup_file_notify): the kill itself may not be among it,
// but that the container had come to its limit is.
type oomWatch struct {
	fd    int  // of memory.events; -1: it is not watched
	kills bool // the OOM killer has killed
	limit bool // the container has wanted more than its limit
}

// watch follows path, which is there, if it is one of cgroup v2.
func (o *oomWatch) watch(l *loop, path string) {
	o.fd = -1
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return // it is asked for at the end
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		_ = unix.Close(fd)
		return
	}
	o.fd = fd
	if o.read(fd) != nil { // or the first change would seem to be there already
		o.close(l)
		return
	}
	l.watch(fd, unix.EPOLLPRI, handlerFunc(func(uint32) {
		if o.read(fd) != nil { // the cgroup is gone: there is no more to come
			o.close(l)
		}
	}))
}

func (o *oomWatch) close(l *loop) {
	l.close(o.fd)
	o.fd = -1
}

func (o *oomWatch) read(fd int) error {
	var buf [512]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		return err
	}
	o.take(buf[:n])
	return nil
}

// take notes what a file of counts says.
func (o *oomWatch) take(text []byte) {
	for _, line := range bytes.Split(text, newline) {
		name, value, _ := bytes.Cut(line, []byte{0x20})
		count, _ := atoi(value)
		switch {
		case count <= 0:
		case string(name) == "oom_kill":
			o.kills = true
		case string(name) == "max", string(name) == "oom":
			o.limit = true
		}
	}
}

// killed says whether the kernel killed for want of memory. lost: the container's
// process ended by a SIGKILL that nobody asked us for.
func (o *oomWatch) killed(path string, lost bool) bool {
	if o.kills || path == "" {
		return o.kills
	}
	var buf [512]byte
	text := readTail(path, buf[:])
	o.take(text)
	return o.kills || len(text) == 0 && o.limit && lost
}
