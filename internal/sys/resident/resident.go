// Package resident gives back what a process has in memory and does not need.
//
// A program that links much touches most of itself when it starts: Go's runtime
// goes through the tables of all functions and interfaces, every package has its
// init, and with each page that is touched the kernel maps the fifteen around it.
// What is used afterwards is a fraction of that, and the kernel, as long as nothing
// else wants the memory, never finds out.
package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Ballast is memory that is never touched, and thus takes none. The garbage collector
// counts it: a heap whose living part is a few megabytes is not collected each time that
// it has grown by so few, but by size bytes more. It counts until it is garbage itself.
func Ballast(size int) *byte { return &make([]byte, size)[0] }

// Release collects garbage, returns what the heap does not use, and unmaps the
// code and the constants of the program itself. These stay in the page cache for as
// long as there is room for them, and are mapped again as they are used, without a
// read of the disk. It returns how many bytes were unmapped, and blocks for some ten
// milliseconds, most of them the collection's.
func Release() (unmapped int64, err error) {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	all, err := parse(f, exe)
	if err != nil {
		return 0, fmt.Errorf("/proc/self/smaps: %w", err)
	}
	for _, m := range all {
		// By number: a range that is not Go's own has no slice or pointer of Go.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return unmapped, fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno)
		}
		unmapped += m.resident
	}
	return unmapped, nil
}

// mapping is a range of addresses that holds nothing but what its file holds.
type mapping struct {
	start, end uintptr
	resident   int64 // bytes
}

// parse finds in smaps (proc_pid_smaps(5)) the mappings of the file at path that may be
// dropped: those that are not writable, and of which no page is the process's
// own, as one is into which a debugger or a probe has put its breakpoint.
func parse(smaps io.Reader, path string) ([]mapping, error) {
	var all []mapping
	var own bool // the mapping being read is one of path, not writable
	s := bufio.NewScanner(smaps)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			return nil, fmt.Errorf("line %q", s.Text())
		}
		if !strings.HasSuffix(f[0], ":") {
			m, ok, err := parseHead(s.Text(), path)
			if err != nil {
				return nil, err
			}
			if own = ok; own {
				all = append(all, m)
			}
			continue
		}
		if !own || (f[0] != "Rss:" && f[0] != "Anonymous:") {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 64)
		switch {
		case err != nil:
			return nil, fmt.Errorf("line %q: %w", s.Text(), err)
		case f[0] == "Rss:":
			all[len(all)-1].resident = kb << 10
		case kb > 0:
			all, own = all[:len(all)-1], false
		}
	}
	return all, s.Err()
}

// parseHead reads the first line of a mapping; ok says that it is one of path and not writable.
func parseHead(line, path string) (m mapping, ok bool, err error) {
	// address perms offset dev inode pathname, the last of them padded and with blanks of its own
	f := strings.SplitN(line, " ", 6)
	if len(f) < 5 || len(f[1]) != 4 {
		return m, false, fmt.Errorf("line %q", line)
	}
	if len(f) < 6 || strings.TrimLeft(f[5], " ") != path || f[1][1] == 'w' {
		return m, false, nil
	}
	from, to, _ := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if err := errors.Join(err1, err2); err != nil {
		return m, false, fmt.Errorf("line %q: %w", line, err)
	}
	if end <= start {
		return m, false, fmt.Errorf("line %q: ends before it begins", line)
	}
	return mapping{start: uintptr(start), end: uintptr(end)}, true, nil
}
