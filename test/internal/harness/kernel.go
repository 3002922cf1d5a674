package harness

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
)

// takeMounts lists mounts under the engine's folders; handles of namespaces count apart.
func (e *Engine) takeMounts(inv *inventory) error {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !e.owns(m.Mountpoint), false
	})
	if err != nil {
		return err
	}
	for _, m := range infos {
		if m.FSType == "nsfs" {
			// Not its number: an engine that has ended cleanly makes its mount namespace anew.
			inv.add(Namespaces, m.Mountpoint+" "+strings.SplitN(m.Root, ":", 2)[0])
			continue
		}
		inv.add(Mounts, m.Mountpoint+" ("+m.FSType+")")
	}
	if e.Pid() == 0 {
		return nil
	}
	return takeHandles(inv, filepath.Join(e.ExecRoot, "netns"))
}

// takeHandles lists the handles of network namespaces, which lie in a mount
// namespace that can be seen through the engine that lives.
func takeHandles(inv *inventory, dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		inv.add(Namespaces, filepath.Join(dir, entry.Name()))
	}
	return err // or a leak would not be seen
}

// owns tells whether a path lies in one of the engine's folders.
func (e *Engine) owns(path string) bool {
	for _, r := range []string{e.Root, e.DataRoot, e.ExecRoot} {
		if strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}

// takeLinks lists the ports of the engine's bridge, links named like such a
// port was, and links that bear the instance's name.
func (e *Engine) takeLinks(inv *inventory) error {
	links, err := allLinks()
	if err != nil {
		return err
	}
	e.noteLinks(links)
	for _, l := range links {
		a := l.Attrs()
		if e.isPort(a.Name) || strings.Contains(a.Name, e.Instance) || strings.Contains(a.Alias, e.Instance) {
			inv.add(Veths, fmt.Sprintf("%s (%s)", a.Name, l.Type()))
		}
	}
	return nil
}

// allLinks lists the links; the kernel says when they changed meanwhile.
func allLinks() (links []netlink.Link, err error) {
	for range 20 {
		if links, err = netlink.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, err
		}
	}
	return links, nil // they change all the time: what was seen is what there is
}

// portPrefix is how much of a port's name is common to those of one engine:
// "veth" and four digits.
const portPrefix = 8

// noteLinks remembers how the ports of the engine's bridge are named: one that
// lost its bridge is found by it.
func (e *Engine) noteLinks(links []netlink.Link) {
	master := -1
	for _, l := range links {
		if l.Attrs().Name == e.Bridge {
			master = l.Attrs().Index
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range links {
		if a := l.Attrs(); a.MasterIndex == master && len(a.Name) > portPrefix {
			e.ports[a.Name[:portPrefix]] = true
		}
	}
}

func (e *Engine) isPort(link string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(link) > portPrefix && e.ports[link[:portPrefix]]
}

// takeNFT lists the objects of tables that bear the instance's name, and rules
// in tables of others that name the instance or its bridge.
func (e *Engine) takeNFT(inv *inventory) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		ours := strings.Contains(t.Name, e.Instance)
		if err := e.takeTable(inv, c, t, ours); err != nil && ours {
			return fmt.Errorf("nft table %s: %w", t.Name, err)
		}
	}
	return nil
}

func (e *Engine) takeTable(inv *inventory, c *nftables.Conn, t *nftables.Table, ours bool) error {
	if ours {
		inv.add(NFT, "table "+t.Name)
	}
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if ch.Table.Name != t.Name {
			continue
		}
		if ours {
			inv.add(NFT, fmt.Sprintf("table %s chain %s", t.Name, ch.Name))
		}
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range rules {
			if !ours && !e.mentions(r) {
				continue
			}
			// Numbered among ours: what others add to their chains moves no number.
			n++
			inv.add(NFT, fmt.Sprintf("table %s chain %s rule %d of ours", t.Name, ch.Name, n))
		}
	}
	if !ours {
		return nil
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return err
	}
	for _, s := range sets {
		inv.add(NFT, fmt.Sprintf("table %s set %s", t.Name, s.Name))
		elements, err := c.GetSetElements(s)
		if err != nil {
			return err
		}
		for _, el := range elements {
			inv.add(NFT, fmt.Sprintf("table %s set %s element %s", t.Name, s.Name, hex.EncodeToString(el.Key)))
		}
	}
	return nil
}

// mentions tells whether a rule of somebody else's table names this engine.
func (e *Engine) mentions(r *nftables.Rule) bool {
	if bytes.Contains(r.UserData, []byte(e.Instance)) {
		return true
	}
	for _, x := range r.Exprs {
		if strings.Contains(fmt.Sprintf("%s", x), e.Bridge) {
			return true
		}
	}
	return false
}

// maxReady is how many monitors without a container an engine may keep: they come and go
// with its starts, and end with it.
const maxReady = 1

// waitsAhead tells whether a process is a runtime that waits for a call beside a monitor: if
// that should not be there, it is a leak itself.
func waitsAhead(pid int, cmdline []byte) bool {
	if !bytes.Contains(cmdline, []byte("/escale-runtime\x00ahead ")) {
		return false
	}
	monitor, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parentOf(pid))) // one that is gone keeps nothing
	return bytes.HasPrefix(monitor, []byte("escale-shim\x00"))
}

// keptReady tells whether a process is a monitor without a container that a living engine
// keeps. One whose engine is gone is none.
func keptReady(engine, pid int, cmdline []byte) bool {
	return bytes.HasPrefix(cmdline, []byte("escale-shim\x00prepared,")) && parentOf(pid) == engine
}

// parentOf is a process' parent; -1 when the process is gone.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if err != nil || len(f) < 2 {
		return -1
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return -1
	}
	return parent
}

// takeProcesses lists the processes of the engine but itself, and returns their ids.
func (e *Engine) takeProcesses(inv *inventory) []int {
	var pids []int
	ready := 0
	for _, pid := range e.processes() {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		pids = append(pids, pid)
		if waitsAhead(pid, cmdline) {
			continue
		}
		if ready < maxReady && keptReady(e.Pid(), pid, cmdline) {
			ready++
			continue
		}
		inv.add(Processes, fmt.Sprintf("%d %.200s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	}
	return pids
}

// processes finds every process that belongs to the engine, except it: those
// with one of its folders in their command line, those whose root filesystem
// is one of its snapshots, those in a cgroup of one of its containers.
func (e *Engine) processes() []int {
	entries, _ := os.ReadDir("/proc")
	self, engine := os.Getpid(), e.Pid()
	var pids []int
	for _, d := range entries {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == self || pid == engine {
			continue
		}
		if e.isOurs(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (e *Engine) isOurs(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(dir + "stat"); err != nil || bytes.Contains(b, []byte(") Z ")) {
		return false // a zombie holds nothing and is its parent's
	}
	if b, _ := os.ReadFile(dir + "cmdline"); bytes.Contains(b, []byte(e.Root+"/")) {
		return true
	}
	if b, _ := os.ReadFile(dir + "cgroup"); e.namesOurs(string(b)) {
		return true
	}
	b, _ := os.ReadFile(dir + "mountinfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return strings.Contains(line, e.DataRoot+"/")
		}
	}
	return false
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// namesOurs tells whether a cgroup path holds the instance's name or the id of
// a container of ours.
func (e *Engine) namesOurs(path string) bool {
	if strings.Contains(path, e.Instance) {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range containerID.FindAllString(path, -1) {
		if e.ids[id] {
			return true
		}
	}
	return false
}

// takeCgroups lists cgroups of the engine under every hierarchy. Those that
// bear only the instance's name hold the others, one of each for good.
func (e *Engine) takeCgroups(inv *inventory) {
	for _, dir := range e.cgroups() {
		if strings.Contains(filepath.Dir(dir), e.Instance) || containerID.MatchString(dir) {
			inv.add(Cgroups, dir)
		}
	}
}

func (e *Engine) cgroups() []string {
	var dirs []string
	// A cgroup that goes away while we walk is not there.
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && e.namesOurs(strings.TrimPrefix(p, "/sys/fs/cgroup")) {
			dirs = append(dirs, p)
		}
		return nil
	})
	return dirs
}

// takeFolders lists what lies on disk: container folders, run folders, snapshots, blobs.
func (e *Engine) takeFolders(inv *inventory) {
	list := func(k Kind, parts ...string) {
		dir := filepath.Join(parts...)
		entries, _ := os.ReadDir(dir)
		for _, d := range entries {
			inv.add(k, filepath.Join(dir, d.Name()))
		}
	}
	list(Records, e.DataRoot, "containers")
	list(Records, e.DataRoot, "networks")
	list(Records, e.Root, tempDir)
	filepath.WalkDir(e.ExecRoot, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == e.ExecRoot {
			return nil
		}
		if d.IsDir() && d.Name() == "filters" {
			return fs.SkipDir // a cache, of compiled filters
		}
		inv.add(Records, p)
		if d.IsDir() && containerID.MatchString(d.Name()) {
			return fs.SkipDir // one line a container is enough
		}
		return nil
	})
	filepath.WalkDir(e.DataRoot, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		switch d.Name() {
		case "containers", "volumes":
			return fs.SkipDir
		case "snapshots":
			list(Snapshots, p)
			if p != filepath.Join(e.DataRoot, "snapshots") {
				return fs.SkipDir
			}
		case "sha256":
			list(Content, p)
			return fs.SkipDir
		case "ingest":
			list(Content, p)
			return fs.SkipDir
		}
		return nil
	})
	list(Records, e.DataRoot, "volumes")
}

// descriptors counts the open files of a process by what they are.
func descriptors(pid int) map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	n := map[string]int{}
	for _, d := range entries {
		to, err := os.Readlink(filepath.Join(dir, d.Name()))
		if err != nil {
			continue
		}
		if kind, _, ok := strings.Cut(to, ":["); ok {
			to = kind
		}
		n[to]++
	}
	return n
}

// listening lists what the processes listen on in this network namespace.
func listening(pids []int) []string {
	held := map[string]bool{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		for _, d := range entries {
			to, _ := os.Readlink(filepath.Join(dir, d.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				held[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	var found []string
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, _ := os.ReadFile("/proc/net/" + proto)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || !held[f[9]] || (f[3] != "0A" && f[3] != "07") {
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			n, _ := strconv.ParseUint(port, 16, 16)
			found = append(found, fmt.Sprintf("%s %s", proto, net.JoinHostPort("", strconv.FormatUint(n, 10))))
		}
	}
	return found
}

// startTime is a process' start in clock ticks, "" when it is gone.
func startTime(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return ""
	}
	return f[19]
}
