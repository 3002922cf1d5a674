package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// untilIdle is how long an engine is left alone before it is called idle.
const untilIdle = 30 * time.Second

// idleMemory measures what the engines hold with nothing to do: the process
// behind the socket and its children, without monitors and what they watch. An engine
// that was given an image a moment ago is not idle yet: both ends get time to rest.
func idleMemory(ctx context.Context, b *bench) error {
	m := b.line("memory of the idle engine (PSS)", "MB", false)
	r := b.line("memory of the idle engine (RSS)", "MB", false)
	for i := range 3 {
		pause := 300 * time.Millisecond
		if i == 0 {
			pause = untilIdle
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		for j, e := range b.ends {
			pids, err := e.processes(ctx)
			if err != nil {
				return err
			}
			var pss, rss float64
			for _, pid := range pids {
				p, err := memoryMB(pid, "smaps_rollup", "Pss:")
				if err != nil {
					return err
				}
				q, err := memoryMB(pid, "status", "VmRSS:")
				if err != nil {
					return err
				}
				pss, rss = pss+p, rss+q
			}
			m.Samples[j] = append(m.Samples[j], pss)
			r.Samples[j] = append(r.Samples[j], rss)
		}
	}
	b.show(m)
	b.show(r)
	return nil
}

// processes are those of the engine: given by flag, or the owner of the socket
// and its descendants. A containerd that systemd started is a stranger to its
// dockerd: then the flag is needed.
func (e *end) processes(ctx context.Context) ([]int, error) {
	if e.pids != "" {
		var pids []int
		for _, s := range split(e.pids) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				return nil, fmt.Errorf("process id %q", s)
			}
			pids = append(pids, pid)
		}
		return pids, nil
	}
	pid, err := e.owner(ctx)
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, s := range stats {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(s)))
		if err != nil || isMonitor(child) {
			continue
		}
		parent := parentOf(child)
		children[parent] = append(children[parent], child)
	}
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids, nil
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

func isMonitor(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.Contains(string(b), "-shim")
}

// memoryMB reads a value in kB from a file of /proc/PID.
func memoryMB(pid int, file, key string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/%s has no %s", pid, file, key)
}

// monitorMemory measures the process that stands beside a container after it
// has written many log lines.
func monitorMemory(ctx context.Context, b *bench) error {
	rss := b.line(fmt.Sprintf("monitor after %d log lines (RSS)", b.lines), "MB", false)
	pss := b.line(fmt.Sprintf("monitor after %d log lines (PSS)", b.lines), "MB", false)
	anon := b.line(fmt.Sprintf("monitor after %d log lines (anonymous)", b.lines), "MB", false)
	for range 3 {
		for j, e := range b.ends {
			// `wc` would end the pipe; the marker tells that all lines are out.
			id, err := e.create(ctx, b.spec("none", "sh", "-c", fmt.Sprintf("seq %d; echo done; exec sleep 3600", b.lines)))
			if err != nil {
				return err
			}
			if err := e.start(ctx, id); err != nil {
				return err
			}
			if err := e.untilLogged(ctx, id, "done"); err != nil {
				return err
			}
			var c struct{ State struct{ Pid int } }
			if err := e.call(ctx, "GET", "/containers/"+id+"/json", nil, &c); err != nil {
				return err
			}
			monitor := parentOf(c.State.Pid)
			if monitor <= 1 {
				return fmt.Errorf("container's process %d at %s: no monitor above it", c.State.Pid, e.name)
			}
			for _, f := range []struct {
				m         *measure
				file, key string
			}{{rss, "status", "VmRSS:"}, {anon, "status", "RssAnon:"}, {pss, "smaps_rollup", "Pss:"}} {
				mb, err := memoryMB(monitor, f.file, f.key)
				if err != nil {
					return err
				}
				f.m.Samples[j] = append(f.m.Samples[j], mb)
			}
			if err := e.remove(ctx, id); err != nil {
				return err
			}
		}
	}
	b.show(rss)
	return nil
}

// untilLogged waits until the last line of a container's log is want.
func (e *end) untilLogged(ctx context.Context, id, want string) error {
	for {
		res, err := e.open(ctx, "GET", "/containers/"+id+"/logs?stdout=1&tail=1", nil)
		if err != nil {
			return err
		}
		buf := make([]byte, 64)
		n, _ := res.Body.Read(buf)
		res.Body.Close()
		if n > 8 && strings.TrimSpace(string(buf[8:n])) == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
