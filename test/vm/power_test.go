package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// workers work on the engine at a time.
const workers = 4

// image is what all containers are made of; it is on the disk before the first cut.
const image = "power:base"

// cutter holds what clients were told by engines whose machine lost its power.
type cutter struct {
	dir, data string
	rng       *rand.Rand
	tar       []byte

	mu      sync.Mutex
	boxes   map[string]*box   // by name
	images  map[string]string // content by name, of imports that were acknowledged
	volumes map[string]bool   // acknowledged creates; false: acknowledged removes
	gone    time.Time         // when the power went last

	creates, starts, exits, removes, imports, cut atomic.Int64
}

// box is what a client knows of a container. Requests in flight when the power
// goes may have been done or not.
type box struct {
	id      string
	created bool // acknowledged
	running bool // start acknowledged, no end seen
	code    int  // exit code that wait told; -1: none yet
	removal int  // 1: asked, 2: acknowledged
	flight  bool // a start was asked and not answered
	stays   bool // it does not end by itself
	again   bool // it stays, and is to come back after a cut
	own     int  // otherwise what it returns
	started time.Time
}

// TestPowerCut cuts the power of a machine whose engine is at work, boots it
// again and compares what is there with what clients had been told: five rounds,
// or $ESCALE_VM_ROUNDS.
func TestPowerCut(t *testing.T) {
	dir := needs(t)
	rounds := 5
	if n, err := strconv.Atoi(os.Getenv("ESCALE_VM_ROUNDS")); err == nil {
		rounds = n
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("ESCALE_VM_SEED"), 10, 64); err == nil {
		seed = n
	}
	busybox, err := harness.BusyboxTar()
	if err != nil {
		t.Skip(err)
	}
	c := &cutter{
		dir: dir, data: filepath.Join(dir, "data.img"), rng: rand.New(rand.NewPCG(seed, 0)), tar: busybox,
		boxes: map[string]*box{}, images: map[string]string{}, volumes: map[string]bool{},
	}
	t.Logf("seed %d, %d rounds", seed, rounds)
	mkfs := exec.Command("sh", "-c", `rm -f "$0" && truncate -s 2G "$0" && PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q -F "$0"`, c.data)
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.Remove(c.data)
		}
	})
	compared := 0
	for round := range rounds + 1 {
		if !c.round(t, round, round == rounds) {
			break
		}
		compared = round
	}
	fmt.Printf("power cut %d times and nothing wrong: %d creates, %d starts, %d exit codes, %d removes and %d imports had been acknowledged, %d requests were cut off\n",
		compared, c.creates.Load(), c.starts.Load(), c.exits.Load(), c.removes.Load(), c.imports.Load(), c.cut.Load())
}

// round boots, compares with what is known, works, and cuts the power; the last
// one only compares and then removes everything.
func (c *cutter) round(t *testing.T, round int, last bool) (ok bool) {
	console := filepath.Join(c.dir, fmt.Sprintf("console-power-%d", round))
	m := boot(t, Options{Dir: c.dir, Data: c.data, Console: console})
	defer m.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	api := harness.NewAPI(m.Engine)
	defer api.Close()
	began := time.Now()
	if err := startEngine(ctx, m, api); err != nil {
		t.Errorf("round %d: %v", round, err)
		return false
	}
	took := time.Since(began)
	if round == 0 {
		if err := api.Import(ctx, "power", "base", bytes.NewReader(c.tar)); err != nil {
			t.Error(err)
			return false
		}
	} else {
		c.compare(ctx, t, round, m, api)
		fmt.Printf("  after cut %d: engine up after %.1f s, %d containers known\n", round, took.Seconds(), len(c.boxes))
	}
	switch {
	case t.Failed(): // the machine is still there to be asked
	case last:
		c.clear(ctx, t, m, api)
	default:
		c.work(ctx, m)
	}
	if t.Failed() {
		log, err := m.Sh(ctx, "tail -n 60 /data/engine.log")
		t.Logf("round %d: the engine said last:\n%s (%v)\nthe kernel:\n%s", round, log, err, m.Tail(2000))
		return false
	}
	return true
}

// startEngine starts the machine's engine with all of its state on the disk /data.
func startEngine(ctx context.Context, m *Machine, api *harness.API) error {
	line := `setsid /escale/bin/escaled --data-root /data/escale --exec-root /run/escale --config-file /data/none.json ` +
		`-H tcp://0.0.0.0:2375 --insecure-tcp -H unix:///run/escale.sock ` + strings.Join(harness.RuntimeArgs(), " ") + ` >>/data/engine.log 2>&1 </dev/null & echo started`
	if _, err := m.Sh(ctx, `[ -e /data/none.json ] || echo '{}' >/data/none.json; `+line); err != nil {
		return err
	}
	end := time.Now().Add(90 * time.Second)
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		st, _, err := api.Raw(try, "GET", "/_ping", nil)
		cancel()
		if err == nil && st == 200 {
			return nil
		}
		if time.Now().After(end) {
			log, _ := m.Sh(ctx, "tail -n 40 /data/engine.log")
			return fmt.Errorf("the engine does not start: %d, %v; it said:\n%s", st, err, log)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// work loads the engine with clients and cuts the power at a random instant.
func (c *cutter) work(ctx context.Context, m *Machine) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i := range workers {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), uint64(i)))
		wg.Go(func() {
			api := harness.NewAPI(m.Engine)
			defer api.Close()
			w := &worker{cutter: c, api: api, rng: rng, n: i}
			for ctx.Err() == nil {
				w.piece(ctx)
			}
		})
	}
	// Emulated starts take seconds: there is always much under way.
	time.Sleep(8*time.Second + time.Duration(c.rng.Int64N(int64(14*time.Second))))
	c.gone = time.Now()
	m.Kill()
	cancel()
	wg.Wait()
}

// worker is one client.
type worker struct {
	*cutter
	api *harness.API
	rng *rand.Rand
	n   int
}

// piece is one piece of work; what was acknowledged is noted the moment it was.
func (w *worker) piece(ctx context.Context) {
	switch w.rng.IntN(8) {
	case 0:
		w.load(ctx)
	case 1:
		w.volume(ctx)
	case 2:
		w.passing(ctx)
	default:
		w.container(ctx)
	}
}

func (w *worker) name(kind string) string {
	return fmt.Sprintf("%s-%d-%08x", kind, w.n, w.rng.Uint32())
}

// note changes what is known.
func (c *cutter) note(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// do asks once; false: the power went, or somebody says no, which is told by compare.
func (w *worker) do(ctx context.Context, method, path string, body, out any) bool {
	err := w.api.Do(ctx, method, path, body, out)
	if err != nil {
		w.cut.Add(1)
	}
	return err == nil
}

func (w *worker) container(ctx context.Context) {
	name, code := w.name("box"), w.rng.IntN(100)
	script := fmt.Sprintf("echo begin; echo x > /data-of-mine; exit %d", code)
	stays := w.rng.IntN(2) == 0
	if stays {
		script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"
	}
	b := &box{code: -1, stays: stays, again: stays && w.rng.IntN(3) == 0, own: code}
	w.note(func() { w.boxes[name] = b })
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", script}, "Volumes": map[string]any{"/v": map[string]any{}}}
	if b.again {
		spec["HostConfig"] = map[string]any{"RestartPolicy": map[string]any{"Name": "unless-stopped"}}
	}
	if !w.do(ctx, "POST", "/containers/create?name="+name, spec, &made) {
		return
	}
	w.note(func() { b.created, b.id = true, made.ID })
	w.creates.Add(1)
	if w.rng.IntN(5) == 0 {
		return // created and left so
	}
	w.note(func() { b.flight = true })
	if !w.do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil) {
		return
	}
	w.note(func() { b.running, b.flight, b.started = true, false, time.Now() })
	w.starts.Add(1)
	if !stays {
		var res struct{ StatusCode int }
		if !w.do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &res) {
			return
		}
		w.note(func() { b.running, b.code = false, res.StatusCode })
		w.exits.Add(1)
	}
	if w.rng.IntN(2) == 0 {
		return
	}
	w.note(func() { b.removal = 1 })
	if w.do(ctx, "DELETE", "/containers/"+made.ID+"?force=1&v=1", nil, nil) {
		w.note(func() { b.removal = 2 })
		w.removes.Add(1)
	}
}

// load imports an image of some random megabytes.
func (w *worker) load(ctx context.Context) {
	name := w.name("img")
	content := make([]byte, 200_000+w.rng.IntN(3_000_000))
	for i := 0; i < len(content); i += 512 {
		content[i] = byte(w.rng.Uint32())
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if tw.WriteHeader(&tar.Header{Name: "blob", Mode: 0o644, Size: int64(len(content))}) != nil {
		return
	}
	if _, err := tw.Write(content); err != nil || tw.Close() != nil {
		return
	}
	if err := w.api.Import(ctx, name, "1", &buf); err != nil {
		w.cut.Add(1)
		return
	}
	w.note(func() { w.images[name] = fmt.Sprintf("%x", sha256.Sum256(content)) })
	w.imports.Add(1)
}

// passingPrefix begins the names of containers that no cut may leave.
const passingPrefix = "passing"

// passing runs a container with --rm. After a cut it must be gone, whatever came of it, as
// everything is that is not noted.
func (w *worker) passing(ctx context.Context) {
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "echo begin; sleep 0.2"}, "HostConfig": map[string]any{"AutoRemove": true}}
	if !w.do(ctx, "POST", "/containers/create?name="+w.name(passingPrefix), spec, &made) || w.rng.IntN(4) == 0 {
		return // or left so
	}
	if w.do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil) {
		w.starts.Add(1)
	}
}

func (w *worker) volume(ctx context.Context) {
	name := w.name("vol")
	if !w.do(ctx, "POST", "/volumes/create", map[string]any{"Name": name}, nil) {
		return
	}
	w.note(func() { w.volumes[name] = true })
}
