package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Close ends the engine, its containers, and removes everything of it from the
// kernel and from disk, whatever state it is in. A DataRoot that the caller
// brought is left, without its mounts. Idempotent.
func (e *Engine) Close() error {
	errs := []error{e.Kill()}
	e.noteIDs()
	// Monitors restart nothing, but a process may be forked while we look.
	for range 20 {
		pids := e.processes()
		if len(pids) == 0 {
			break
		}
		thaw(e.cgroups())
		for _, pid := range pids {
			if err := unix.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	errs = append(errs, e.purgeLinks(), e.purgeNFT(), e.purgeMounts(), e.purgeCgroups())
	if err := os.RemoveAll(e.Root); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// thaw lets paused containers run, for version 1 of cgroups keeps a frozen
// process even from being killed.
func thaw(cgroups []string) {
	for _, dir := range cgroups {
		for file, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			if f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0); err == nil {
				f.WriteString(value) // one that goes away meanwhile needs none
				f.Close()
			}
		}
	}
}

func (e *Engine) purgeMounts() error {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !e.owns(m.Mountpoint), false
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(infos) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) purgeLinks() error {
	inv := &inventory{things: map[Kind]map[string]bool{}}
	if err := e.takeLinks(inv); err != nil {
		return err
	}
	for what := range inv.things[Veths] {
		name, _, _ := strings.Cut(what, " ")
		if l, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(l) // the other end may have taken it along
		}
	}
	return nil
}

func (e *Engine) purgeNFT() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if strings.Contains(t.Name, e.Instance) {
			c.DelTable(t)
			continue
		}
		chains, err := c.ListChainsOfTableFamily(t.Family)
		if err != nil {
			continue
		}
		for _, ch := range chains {
			if ch.Table.Name != t.Name {
				continue
			}
			rules, _ := c.GetRules(t, ch)
			for _, r := range rules {
				if e.mentions(r) {
					if err := c.DelRule(r); err != nil {
						return err
					}
				}
			}
		}
	}
	return c.Flush()
}

func (e *Engine) purgeCgroups() error {
	var errs []error
	for range 20 {
		errs = nil
		for _, dir := range slices.Backward(e.cgroups()) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("cgroup %s: %w", dir, err))
			}
		}
		if len(errs) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(errs...)
}

// Sweep removes what engines of test runs left that were themselves killed:
// folders whose owner lives no more. Call it before a run.
func Sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), rootPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "owner"))
		if err != nil {
			continue
		}
		var pid int
		var start, instance string
		if n, _ := fmt.Sscanf(string(b), "%d %s\n%s\n", &pid, &start, &instance); n != 3 || startTime(pid) == start {
			continue
		}
		e := &Engine{
			Instance: instance, Root: dir, DataRoot: filepath.Join(dir, "data"), ExecRoot: filepath.Join(dir, "exec"),
			Bridge: "br" + instance, ids: map[string]bool{}, ports: map[string]bool{},
		}
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
