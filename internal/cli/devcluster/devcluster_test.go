package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newCluster makes a cluster without nodes, which goes with the test.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	engine, err := filepath.Abs("../../../bin/escaled")
	if err == nil {
		_, err = os.Stat(engine)
	}
	if err != nil {
		t.Skipf("needs the built programs (make build): %v", err)
	}
	c, err := open(fmt.Sprintf("t%d", os.Getpid()%1e6), true)
	if err != nil {
		t.Fatal(err)
	}
	c.engine = engine
	t.Cleanup(func() {
		if err := errors.Join(c.remove(context.Background()), c.close()); err != nil {
			t.Error(err)
		}
		c.nothingLeft(t)
	})
	if err := errors.Join(c.settle(""), c.wire()); err != nil {
		t.Fatal(err)
	}
	return c
}

// nothingLeft fails when anything of a cluster that was removed is there.
func (c *cluster) nothingLeft(t *testing.T) {
	t.Helper()
	for _, path := range []string{c.dir, filepath.Join(runRoot, c.Name), c.switchboard(), filepath.Join("/run/netns", c.Name+"-n1")} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := netlink.LinkByName(c.uplink()); err == nil {
		t.Errorf("link %s is left", c.uplink())
	}
	if list, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.Contains(i.Mountpoint, "/"+c.Name+"/"), false
	}); err != nil || len(list) > 0 {
		t.Errorf("%d mounts are left, %v", len(list), err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/escale-dev/" + c.Name + "-*"); len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
}

// reaches tells whether a connection from one node gets to the other.
func reaches(t *testing.T, from, to *node) bool {
	t.Helper()
	far, err := netns.Open(to.namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var l net.Listener
	if err := far.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(to.Addr.String(), "0")); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := netns.Open(from.namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	return near.Do(func() error {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}) == nil
}

// Nodes are engines of their own that reach each other, unless they are cut off; one can be
// killed, frozen and started again, and of all of it nothing is left.
func TestNodes(t *testing.T) {
	c := newCluster(t)
	a, b, other := c.add(true, nil), c.add(false, nil), c.add(false, nil)
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		if err := n.start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.processes()); n == 0 {
		t.Error("a node without processes")
	}
	if !reaches(t, a, b) || !reaches(t, b, other) {
		t.Error("nodes do not reach each other")
	}
	for _, n := range []*node{b, other} {
		n.Side = 1
		if err := n.stand(); err != nil {
			t.Fatal(err)
		}
	}
	if reaches(t, a, b) || !reaches(t, b, other) {
		t.Error("two nodes that are cut off from the rest reach it, or do not reach each other")
	}
	if err := errors.Join(b.heal(t.Context()), other.heal(t.Context())); err != nil || !reaches(t, a, b) {
		t.Errorf("healed, and not reached: %v", err)
	}

	pid := a.pid()
	if err := a.freeze(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := a.answers(ctx, make(chan error)); err == nil {
		t.Error("a frozen node answers")
	}
	if err := errors.Join(a.heal(t.Context()), a.answers(t.Context(), make(chan error))); err != nil || a.pid() != pid {
		t.Errorf("healed: %v, process %d, was %d", err, a.pid(), pid)
	}
	if err := a.freeze(); err != nil { // what is frozen can be killed, too
		t.Fatal(err)
	}
	if err := a.kill(t.Context()); err != nil || a.runs() || len(a.processes()) != 0 {
		t.Errorf("killed: %v, processes %v", err, a.processes())
	}
	if a.state() != "down" || b.state() != "running" {
		t.Errorf("states %s and %s", a.state(), b.state())
	}
	if err := a.start(t.Context()); err != nil || a.pid() == pid {
		t.Errorf("started again: %v", err)
	}
	if err := a.stop(t.Context()); err != nil || a.runs() {
		t.Errorf("stopped: %v", err)
	}
}

// A node whose engine does not start says what that wrote.
func TestEngineThatFails(t *testing.T) {
	c := newCluster(t)
	n := c.add(true, []string{"--no-such-option"})
	if err := n.start(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("%v", err)
	}
}

// Words that are wrong are refused before anything is made; the list can be read by programs.
func TestVerbs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without it every cluster is refused")
	}
	for line, want := range map[string]func(error) bool{
		"up 0":                             errdefs.IsInvalidArgument,
		"up many":                          errdefs.IsInvalidArgument,
		"--name Wrong-One ls":              errdefs.IsInvalidArgument,
		"--name t0absent ls":               errdefs.IsNotFound,
		"--name t0absent down":             errdefs.IsNotFound,
		"--name t0absent kill n1":          errdefs.IsNotFound,
		"--name t0bad up --subnet x":       errdefs.IsInvalidArgument,
		"--name t0bad up --subnet fd::/64": errdefs.IsInvalidArgument,
	} {
		if err := run(t.Context(), new(bytes.Buffer), new(bytes.Buffer), strings.Fields(line)); !want(err) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := os.Stat(filepath.Join(keptRoot, "t0bad")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cluster that was refused is there: %v", err)
	}
	c := newCluster(t)
	c.add(true, nil)
	if _, err := c.pick([]string{"n9"}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "there are n1") {
		t.Errorf("%v", err)
	}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_UN); err != nil { // run takes it
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out, new(bytes.Buffer), []string{"--name", c.Name, "ls", "--format", "json"}); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["name"] != "n1" || got["role"] != "manager" || got["state"] != "down" || !strings.HasPrefix(got["socket"], "unix:///") || got["address"] == "" {
		t.Errorf("%s: %v", out.String(), err)
	}
}
