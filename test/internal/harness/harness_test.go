package harness

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestLeaksAreSeenAndPurged leaves one thing of each kind behind, as a broken
// engine would, and checks that the report names every one of them and that
// Close takes them all.
func TestLeaksAreSeenAndPurged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, links, cgroups and nftables")
	}
	e, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("ab", 32)
	leaveAll(t, e, id)

	r, err := e.Leaks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{Mounts, Namespaces, Veths, Cgroups, Processes, Records, NFT, Snapshots, Content} {
		if len(r[k]) == 0 {
			t.Errorf("%s: nothing seen of what was left; report:\n%s", k, r)
		}
	}
	if !slices.ContainsFunc(r[NFT], func(s string) bool { return strings.HasSuffix(s, "element 1f90") }) {
		t.Errorf("nft elements: %q lack the port 8080", r[NFT])
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	r, err = e.Leaks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !r.Empty() {
		t.Errorf("left after Close:\n%s", r)
	}
	if _, err := os.Stat(e.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", e.Root, err)
	}
}

func leaveAll(t *testing.T, e *Engine, id string) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{
		"data/containers/" + id, "data/snapshots/snapshots/7", "data/content/blobs/sha256/" + id, "exec/netns", "m",
	} {
		ok(os.MkdirAll(filepath.Join(e.Root, d), 0o755))
	}
	ok(unix.Mount("none", filepath.Join(e.Root, "m"), "tmpfs", 0, "size=64k"))
	handle := filepath.Join(e.ExecRoot, "netns", "x")
	ok(os.WriteFile(handle, nil, 0o600))
	ok(unix.Mount("/proc/self/ns/net", handle, "", unix.MS_BIND, ""))
	ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: e.Bridge}}))
	br, err := netlink.LinkByName(e.Bridge)
	ok(err)
	ok(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "v" + e.Instance, MasterIndex: br.Attrs().Index}, PeerName: "p" + e.Instance,
	}))
	groups, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	ok(err)
	top := "/sys/fs/cgroup"
	if len(groups) > 0 {
		top = filepath.Dir(groups[0])
	}
	ok(os.MkdirAll(filepath.Join(top, "docker-"+e.Instance, id), 0o755))
	cmd := exec.Command("sh", "-c", "while sleep 0.2; do :; done", e.Root+"/x")
	ok(cmd.Start())
	go cmd.Wait()
	c, err := nftables.New()
	ok(err)
	table := c.AddTable(&nftables.Table{Name: "x-" + e.Instance, Family: nftables.TableFamilyIPv4})
	ok(c.AddSet(&nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}, []nftables.SetElement{{Key: binaryutil.BigEndian.PutUint16(8080)}}))
	ok(c.Flush())
}

// TestReadyMonitors tells a monitor that a living engine keeps ready from one that was left.
func TestReadyMonitors(t *testing.T) {
	const dead = 0
	for arg, ready := range map[string]bool{"prepared, of no container yet": true, strings.Repeat("ab", 32): false} {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := []byte("escale-shim\x00" + arg + "\x00")
		if pid := cmd.Process.Pid; keptReady(os.Getpid(), pid, line) != ready || keptReady(dead, pid, line) {
			t.Errorf("%q: of a living engine %v, of a dead one %v", arg, keptReady(os.Getpid(), pid, line), keptReady(dead, pid, line))
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// TestSweepTakesOrphans checks that what a killed test run left is collected,
// and what a living one uses is not.
func TestSweepTakesOrphans(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the sweep lists nftables")
	}
	dead, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	alive, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	// No process has this start time.
	if err := os.WriteFile(filepath.Join(dead.Root, "owner"), []byte("1 1\n"+dead.Instance+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.Root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s of a dead owner: %v", dead.Root, err)
	}
	if _, err := os.Stat(alive.Root); err != nil {
		t.Errorf("%s of a living owner: %v", alive.Root, err)
	}
}

func TestDemux(t *testing.T) {
	frame := func(n byte, s string) string { return string([]byte{n, 0, 0, 0, 0, 0, 0, byte(len(s))}) + s }
	for _, c := range []struct{ name, in, out, err, fail string }{
		{"both", frame(1, "a") + frame(2, "b") + frame(1, "c"), "ac", "b", ""},
		{"empty", "", "", "", ""},
		{"cut header", frame(1, "a")[:5], "", "", "unexpected EOF"},
		{"cut body", frame(1, "abc")[:9], "a", "", "unexpected EOF"},
		{"no such stream", frame(9, "abc"), "", "", "frame of stream 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o, e bytes.Buffer
			err := Demux(strings.NewReader(c.in), &o, &e)
			if (err == nil) != (c.fail == "") || err != nil && err.Error() != c.fail {
				t.Errorf("error %v, want %q", err, c.fail)
			}
			if o.String() != c.out || e.String() != c.err {
				t.Errorf("got %q and %q, want %q and %q", o.String(), e.String(), c.out, c.err)
			}
		})
	}
}

// TestLeaksWaits checks that what goes away within two seconds is not reported.
func TestLeaksWaits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the inventory lists nftables")
	}
	e, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	dir := filepath.Join(e.DataRoot, "containers", strings.Repeat("cd", 32))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { os.Remove(dir) })
	if r, err := e.Leaks(context.Background()); err != nil || !r.Empty() {
		t.Errorf("left %v %s", err, r)
	}
}
