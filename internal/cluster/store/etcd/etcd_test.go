package etcd

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd/child"
	"escale.dev/escale/internal/cluster/store/etcd/server"
	"escale.dev/escale/internal/cluster/store/seal"
	"escale.dev/escale/internal/cluster/store/storetest"
)

// serverWord makes the test binary, run anew, a server.
const serverWord = "store-server"

func TestMain(m *testing.M) {
	if socket := os.Getenv(leaderEnv); socket != "" {
		fmt.Fprintln(os.Stderr, leadForEver(socket))
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == serverWord {
		os.Exit(server.Main(os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// soon is how long something may take that takes a moment on a machine that is not busy.
const soon = time.Minute

// peerURL is one that nobody else has: the loopback device has many addresses.
func peerURL() string {
	return fmt.Sprintf("http://127.%d.%d.%d:2380", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254))
}

// config is one of a server of its own, with times for tests.
func config(t testing.TB, name string) child.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "store") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return child.Config{Name: name, Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), Listen: peerURL(), Fresh: true, Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond}
}

// logged is a log that a test shows when it fails.
func logged(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// running is a server that a test has started.
type running struct {
	*child.Child
	cfg  child.Config
	stop func() // blocks until it has ended
}

// start starts a server.
func start(t testing.TB, cfg child.Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Child: child.New(cfg, []string{os.Args[0], serverWord}, logged(t)), cfg: cfg}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.Run(ctx) // a test asks for its state
	}()
	r.stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(r.stop)
	return r
}

// ready waits until a server answers.
func (r *running) ready(t testing.TB) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// open opens the store of a server.
func (r *running) open(t testing.TB, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Socket: r.cfg.Socket, Name: r.cfg.Name, Patience: soon, Lease: 2 * time.Second, Prefer: r.Leads, Log: logged(t)}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	s, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// The contract, on one server: each store has keys of its own. Once as it is, once
// sealed.
func TestStore(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	for name, ring := range map[string]*seal.Ring{"open": nil, "sealed": oneRing(t)} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, true, func(t *testing.T, dir string) store.Store {
				h := fnv.New64a()
				fmt.Fprint(h, name, dir)
				return r.open(t, func(c *Config) { c.Prefix, c.Seal = fmt.Sprintf("%x", h.Sum64()), func() *seal.Ring { return ring } })
			})
		})
	}
}

// ring gives one with a key of its own, always the same.
func ring(t testing.TB) func() *seal.Ring {
	t.Helper()
	r := oneRing(t)
	return func() *seal.Ring { return r }
}

func oneRing(t testing.TB) *seal.Ring {
	t.Helper()
	r, err := seal.NewRing(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// must commits.
func must(t testing.TB, s store.Store, changes ...store.Change) uint64 {
	t.Helper()
	at, err := s.Commit(t.Context(), changes...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// eventually waits until f gives "", which says what is wanted.
func eventually(t testing.TB, f func() string) {
	t.Helper()
	deadline := time.Now().Add(soon)
	for {
		what := f()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// saved is all that a store has.
func saved(t testing.TB, s store.Store) string {
	t.Helper()
	var b strings.Builder
	if err := store.Save(&b, s.View()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
