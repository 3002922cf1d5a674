package arch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// layers: a package imports strictly downward, and within its own tree. A tree is
// what stands in this table; the longest match counts. A new room needs a row here.
var layers = []struct {
	rank  int
	trees []string
}{
	{0, []string{"internal/sys"}},
	{1, []string{"internal/events", "internal/logs", "internal/stats", "internal/plugin"}},
	{2, []string{"internal/runtime", "internal/image", "internal/volume", "internal/network"}},
	{3, []string{"internal/container", "internal/builder", "internal/registry", "internal/plugin/managed"}},
	{4, []string{"internal/cluster", "internal/ingress"}},
	{5, []string{"internal/api", "internal/dashboard", "internal/compose"}},
	{6, []string{"internal/daemon", "internal/cli"}},
	{7, []string{"cmd"}},
}

// outside are the trees that may import only what is named, beside themselves.
var outside = map[string][]string{
	"client":        {},
	"bench":         {"client"},
	"examples":      {}, // they are what users write
	"test":          {"client"},
	"internal/arch": {},
}

// wired are implementations: only the package that wires them, and their own tree,
// import them. (runtime/oci, a library of specifications, is none.)
var wired = []string{
	"internal/network/bridge", "internal/network/host", "internal/network/none", "internal/network/macvlan", "internal/network/overlay",
	"internal/volume/local", "internal/volume/plugin", "internal/runtime/shim", "internal/runtime/native",
	"internal/logs/ship/syslog", "internal/logs/ship/gelf", "internal/logs/ship/fluentd", "internal/logs/ship/journald",
	"internal/cluster/store/mem", "internal/cluster/store/bolt", "internal/cluster/store/etcd",
}

// mayWire are those that wire: the engine, the mains of the monitor, of the cluster's
// store and of the OCI runtime, which are one each, and the bench on which loops are tested.
var mayWire = []string{"internal/daemon", "cmd/escale-shim", "cmd/escale-store", "cmd/escale-runtime", "internal/cluster/store/loop/looptest"}

// place finds a package's tree and rank.
func place(path string) (tree string, rank int, ok bool) {
	for _, l := range layers {
		for _, t := range l.trees {
			if within(path, t) && len(t) > len(tree) {
				tree, rank, ok = t, l.rank, true
			}
		}
	}
	return tree, rank, ok
}

// loops of the cluster meet in the store: each of these is a tree of its own inside it.
func clusterPart(path string) string {
	rest, ok := strings.CutPrefix(path, "internal/cluster/")
	if !ok {
		return ""
	}
	parts := strings.Split(rest, "/")
	if parts[0] == "reconcile" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// forbidden says why from may not import to, or "".
func forbidden(from, to string) string {
	for _, w := range wired {
		if within(to, w) && !within(from, w) && !slices.ContainsFunc(mayWire, func(m string) bool { return within(from, m) }) {
			return fmt.Sprintf("%s is an implementation, wired by internal/daemon only; take an interface instead", w)
		}
	}
	for tree, allowed := range outside {
		if !within(from, tree) {
			continue
		}
		if within(to, tree) || slices.ContainsFunc(allowed, func(a string) bool { return within(to, a) }) {
			return ""
		}
		return fmt.Sprintf("%s may import of this module only itself and %q", tree, allowed)
	}
	fromTree, fromRank, ok := place(from)
	if !ok {
		return "" // told once, by TestEveryPackageHasALayer
	}
	if to == "client" && (within(from, "internal/cli") || within(from, "internal/builder/client") || within(from, "internal/api/node")) {
		return ""
	}
	toTree, toRank, ok := place(to)
	switch {
	case !ok:
		return fmt.Sprintf("%s is in no layer that %s may use", to, from)
	case fromTree == toTree:
		a, b := clusterPart(from), clusterPart(to)
		if a != "" && b != "" && a != b && b != "store" {
			return "parts of the cluster never call each other; they meet in the store"
		}
		return ""
	case fromRank > toRank:
		return ""
	case fromRank == toRank:
		return fmt.Sprintf("both are of rank %d: siblings do not know each other; move what they share down, or take an interface that internal/daemon adapts", fromRank)
	}
	return fmt.Sprintf("rank %d may not import rank %d: imports go downward", fromRank, toRank)
}

func TestEveryPackageHasALayer(t *testing.T) {
	for _, p := range packages(t) {
		_, _, ok := place(p.path)
		for tree := range outside {
			ok = ok || within(p.path, tree)
		}
		if !ok {
			t.Errorf("%s stands in no layer: give its tree a row in internal/arch/layers_test.go, or move it into a room that has one", p.ImportPath)
		}
	}
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			to := ours(imp)
			if to == "" {
				continue
			}
			if why := forbidden(p.path, to); why != "" {
				t.Errorf("%s imports %s: %s", p.path, to, why)
			}
		}
	}
}

// The rules say no where they should.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		from, to string
		allowed  bool
	}{
		{"internal/container", "internal/network", true},
		{"internal/network", "internal/container", false},
		{"internal/network", "internal/image", false},
		{"internal/network/bridge", "internal/network", true},
		{"internal/network/bridge", "internal/sys/nft", true},
		{"internal/container", "internal/network/bridge", false},
		{"internal/daemon", "internal/network/bridge", true},
		{"internal/runtime/shim/monitor", "internal/logs/format", true},
		{"cmd/escale-shim", "internal/runtime/shim/monitor", true},
		{"internal/cli", "client", true},
		{"internal/cli", "internal/daemon", false},
		{"internal/container", "client", false},
		{"client", "internal/container", false},
		{"test/e2e", "internal/daemon", false},
		{"test/kill", "test/internal/harness", true},
		{"internal/cluster/scheduler", "internal/cluster/store", true},
		{"internal/cluster/scheduler", "internal/cluster/dispatch", false},
		{"internal/cluster/reconcile/app", "internal/cluster/reconcile/job", false},
		{"internal/sys/nft", "internal/sys/netns", true},
		{"internal/sys/nft", "internal/events", false},
	} {
		if why := forbidden(c.from, c.to); (why == "") != c.allowed {
			t.Errorf("%s → %s: %q, want allowed=%v", c.from, c.to, why, c.allowed)
		}
	}
}

// BuildKit is the builder's affair.
func TestBuildKitStaysInTheBuilder(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			if within(imp, "github.com/moby/buildkit") && p.path != "internal/builder" && p.path != "internal/builder/client" {
				t.Errorf("%s imports %s: only internal/builder and its client may; ask through internal/builder/request", p.path, imp)
			}
		}
	}
}

// Binaries that start once a command or once a container stay lean.
func TestLeanBinaries(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []struct {
		cmd, why string
		banned   []string
	}{
		{"./cmd/escale-shim", "a monitor stands beside every container: it must stay at some 2 MB", []string{
			"fmt", "net", "encoding/json", "compress", "log", "log/slog", "context", "regexp", "text", "html", "os/exec", "os/user", "crypto", "google.golang.org", "github.com",
			"go.opentelemetry.io", "golang.org/x/net"}},
		{"./cmd/escale-runtime", "it starts twice for each container", []string{
			"encoding/json", "net", "net/http", "compress", "log", "regexp", "text", "html", "crypto/tls", "google.golang.org", "go.opentelemetry.io", "golang.org/x/net", "github.com/sirupsen",
			"github.com/containerd/containerd", "github.com/moby", "github.com/opencontainers/runc", "github.com/opencontainers/cgroups", "github.com/cilium", "github.com/godbus"}},
		{"./cmd/escale", "the command line starts in 4 ms", []string{
			"github.com/containerd/containerd", "go.etcd.io", "github.com/moby/buildkit", "github.com/prometheus", "github.com/vishvananda", "github.com/google/nftables",
			"github.com/opencontainers/runc", "github.com/opencontainers/cgroups", "google.golang.org/grpc", "github.com/distribution/distribution", "github.com/docker/cli",
			module + "/internal/daemon", module + "/internal/container", module + "/internal/image", module + "/internal/network", module + "/internal/runtime",
			module + "/internal/api", module + "/internal/builder", module + "/internal/cluster"}},
	} {
		pkgs, err := list(root, b.cmd)
		if err != nil || len(pkgs) != 1 || pkgs[0].Name != "main" {
			t.Errorf("%s is not there: %v", b.cmd, err)
			continue
		}
		for _, dep := range pkgs[0].Deps {
			if dep == module+"/internal/builder/plan" {
				continue // it is there to be all that escale links of the builder
			}
			if slices.ContainsFunc(b.banned, func(ban string) bool { return within(dep, ban) }) {
				t.Errorf("%s links %s: %s; see who imports it with `go list -deps` and do without", b.cmd, dep, b.why)
			}
		}
	}
}
