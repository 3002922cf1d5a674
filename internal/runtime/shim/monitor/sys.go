package monitor

import (
	"os"

	"golang.org/x/sys/unix"
)

// fatal ends the monitor for a reason that cannot be survived; its standard
// error is a file beside the container's sockets.
func fatal(what string, err error) {
	_, _ = os.Stderr.WriteString("escale-shim: " + what + err.Error() + "\n") // the last words
	os.Exit(1)
}

// itoa is n in decimal digits; fmt and strconv would only make the monitor bigger.
func itoa(n int64) string {
	var b [20]byte
	i, neg := len(b), n < 0
	if !neg {
		n = -n // negative numbers reach further
	}
	for {
		i--
		b[i] = byte('0' - n%10)
		n /= 10
		if n == 0 {
			break
		}
	}
	if neg {
		i--
		b[i] = '-'
	}
	return string(b[i:])
}

// atoi reads the decimal number that s begins with, blanks before it skipped;
// ok is false without a digit.
func atoi(s []byte) (n int64, ok bool) {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\n') {
		s = s[1:]
	}
	for len(s) > 0 && s[0] >= '0' && s[0] <= '9' && n < 1<<59 {
		n, s, ok = n*10+int64(s[0]-'0'), s[1:], true
	}
	return n, ok
}

// readTail reads the last bytes of a file, as many as fit into buf.
func readTail(path string, buf []byte) []byte {
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Size > int64(len(buf)) {
		_, _ = unix.Seek(fd, st.Size-int64(len(buf)), unix.SEEK_SET) // else the beginning is read
	}
	n := 0
	for n < len(buf) {
		k, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if k <= 0 {
			break
		}
		n += k
	}
	return buf[:n]
}

func open(path string, flags int, mode uint32) (fd int, err error) {
	for {
		if fd, err = unix.Open(path, flags|unix.O_CLOEXEC, mode); err != unix.EINTR {
			return fd, err
		}
	}
}

// writeAll writes b and says how much of it arrived.
func writeAll(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		k, err := unix.Write(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// replaceFile puts text into a file at once: a reader sees the old one or the
// whole new one, and with sync a power cut does not undo it.
func replaceFile(path, text string, sync bool) error {
	tmp := path + ".tmp"
	fd, err := open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = writeAll(fd, []byte(text))
	if err == nil && sync {
		err = unix.Fsync(fd)
	}
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err == nil {
		err = unix.Rename(tmp, path)
	}
	if err != nil {
		_ = unix.Unlink(tmp) // the first error is the one to tell
	}
	return err
}

// startTime is field 22 of /proc/<pid>/stat, in clock ticks since boot; 0 when
// there is no such process. With the boot id it makes a pid unmistakable.
func startTime(pid int) int64 {
	var buf [1024]byte
	b := readTail("/proc/"+itoa(int64(pid))+"/stat", buf[:])
	// The command's name, in parentheses, may hold anything.
	i := len(b) - 1
	for i >= 0 && b[i] != ')' {
		i--
	}
	field := 2
	for i++; i >= 1 && i < len(b); i++ {
		if b[i] != ' ' {
			continue
		}
		if field++; field == 22 {
			n, _ := atoi(b[i+1:])
			return n
		}
	}
	return 0
}

func bootID() string {
	var buf [64]byte
	b := readTail("/proc/sys/kernel/random/boot_id", buf[:])
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// identity is what the files MonitorName and StartedName hold.
func identity(pid int, start int64, boot string) string {
	return itoa(int64(pid)) + " " + itoa(start) + " " + boot + "\n"
}

func now() unix.Timespec {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts) // cannot fail for this clock
	return ts
}

// uptime is in seconds; nobody can set it.
func uptime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Sec
}
