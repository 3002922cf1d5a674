// Package devcluster is `escale cluster dev`: a cluster on one machine, for people who
// try one and for tests. Each node is a real engine in a network namespace, a control
// group and a data root of its own; all of them hang on one bridge, at whose other end is
// the host. A node can be killed with all that runs on it, as by a power cut, frozen, and
// cut off from the others.
//
// It is linked into escaled, started by escale. Whatever it makes bears the cluster's name,
// so that Down finds it, also what a call left that was killed midway.
package devcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Places of all development clusters.
const (
	keptRoot = "/var/lib/escale-dev" // of what survives: data roots, descriptions
	runRoot  = "/run/escale-dev"     // sockets, handles
)

// cluster is one that was made.
type cluster struct {
	Name   string
	Subnet netip.Prefix // its first address is the host's
	Nodes  []*node
	dir    string
	lock   *os.File
	engine string // program
}

// node is a machine of it.
type node struct {
	Name    string
	Manager bool
	Addr    netip.Addr
	Side    int  `json:",omitempty"` // of a partition that it stands on; 0 is the host's
	Frozen  bool `json:",omitempty"`
	Options []string
	c       *cluster
}

// nameForm is what a cluster may be called: its links' names have fifteen letters.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,7}$`)

// open takes up a cluster and keeps others from it until close. NotFound when there is
// none; it is made then if fresh is true.
func open(name string, fresh bool) (*cluster, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("%q: a development cluster is called by up to eight lower-case letters and digits: %w", name, errdefs.ErrInvalidArgument)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("a development cluster needs root: it makes network namespaces and links: %w", errdefs.ErrPermissionDenied)
	}
	c := &cluster{Name: name, dir: filepath.Join(keptRoot, name)}
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) && !fresh {
		return nil, fmt.Errorf("no development cluster is called %s; make one with \"escale cluster dev up\": %w", name, errdefs.ErrNotFound)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if c.engine, err = os.Executable(); err != nil {
		return nil, err
	}
	if c.lock, err = os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.lock.Name(), err), c.lock.Close())
	}
	b, err := os.ReadFile(c.file())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err == nil:
		err = json.Unmarshal(b, c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.file(), err), c.lock.Close())
	}
	for _, n := range c.Nodes {
		n.c = c
	}
	return c, nil
}

func (c *cluster) close() error { return c.lock.Close() }

func (c *cluster) file() string { return filepath.Join(c.dir, "cluster.json") }

// save writes what the cluster is before it is made so.
func (c *cluster) save() error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	return atomicfile.Write(c.file(), append(b, '\n'), 0o600, atomicfile.Options{})
}

// add makes the description of one node more.
func (c *cluster) add(manager bool, options []string) *node {
	i := 1
	for c.node(fmt.Sprint("n", i)) != nil {
		i++
	}
	addr := c.Subnet.Masked().Addr()
	for range 10 + i {
		addr = addr.Next()
	}
	n := &node{Name: fmt.Sprint("n", i), Manager: manager, Addr: addr, Options: options, c: c}
	c.Nodes = append(c.Nodes, n)
	return n
}

// node is the one of a name, or of the cluster's and its own: "dev-n1".
func (c *cluster) node(name string) *node {
	i := slices.IndexFunc(c.Nodes, func(n *node) bool { return n.Name == name || n.instance() == name })
	if i < 0 {
		return nil
	}
	return c.Nodes[i]
}

// pick gives the nodes of some names.
func (c *cluster) pick(names []string) ([]*node, error) {
	var out []*node
	for _, name := range names {
		n := c.node(name)
		if n == nil {
			var all []string
			for _, n := range c.Nodes {
				all = append(all, n.Name)
			}
			return nil, fmt.Errorf("no node is called %s: there are %s: %w", name, strings.Join(all, ", "), errdefs.ErrNotFound)
		}
		out = append(out, n)
	}
	return out, nil
}

// host is the host's own address on the bridge.
func (c *cluster) host() netip.Prefix {
	return netip.PrefixFrom(c.Subnet.Masked().Addr().Next(), c.Subnet.Bits())
}

// Names and places of a node.
func (n *node) instance() string { return n.c.Name + "-" + n.Name }
func (n *node) data() string     { return filepath.Join(n.c.dir, n.Name) }
func (n *node) run() string      { return filepath.Join(runRoot, n.c.Name, n.Name) }
func (n *node) socket() string   { return filepath.Join(n.run(), "escale.sock") }
func (n *node) pidfile() string  { return filepath.Join(n.run(), "escaled.pid") }
func (n *node) log() string      { return filepath.Join(n.data(), "engine.log") }

// namespace is where `ip netns exec` finds it, too.
func (n *node) namespace() string { return filepath.Join("/run/netns", n.instance()) }

// cgroup is the one above all that the node runs.
func (n *node) cgroup() string { return "/escale-dev/" + n.instance() }

func (n *node) role() string {
	if n.Manager {
		return "manager"
	}
	return "worker"
}
