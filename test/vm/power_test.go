package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	own     int  // otherwise what it returns
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
	for round := range rounds + 1 {
		if !c.round(t, round, round == rounds) {
			break
		}
	}
	fmt.Printf("power cut %d times: %d creates, %d starts, %d exit codes, %d removes and %d imports had been acknowledged, %d requests were cut off\n",
		rounds, c.creates.Load(), c.starts.Load(), c.exits.Load(), c.removes.Load(), c.imports.Load(), c.cut.Load())
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
	if last {
		c.clear(ctx, t, m, api)
	} else {
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
		`-H tcp://0.0.0.0:2375 --insecure-tcp -H unix:///run/escale.sock >>/data/engine.log 2>&1 </dev/null & echo started`
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
	b := &box{code: -1, stays: stays, own: code}
	w.note(func() { w.boxes[name] = b })
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", script}, "Volumes": map[string]any{"/v": map[string]any{}}}
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
	w.note(func() { b.running, b.flight = true, false })
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

func (w *worker) volume(ctx context.Context) {
	name := w.name("vol")
	if !w.do(ctx, "POST", "/volumes/create", map[string]any{"Name": name}, nil) {
		return
	}
	w.note(func() { w.volumes[name] = true })
}

// compare looks at what is there after a boot.
func (c *cutter) compare(ctx context.Context, t *testing.T, round int, m *Machine, api *harness.API) {
	blame := func(format string, args ...any) { t.Errorf("after cut %d: %s", round, fmt.Sprintf(format, args...)) }
	var list []struct {
		ID, State string
		Names     []string
	}
	if err := api.Do(ctx, "GET", "/containers/json?all=1", nil, &list); err != nil {
		blame("%v", err)
		return
	}
	there := map[string]bool{}
	for _, l := range list {
		name := strings.TrimPrefix(l.Names[0], "/")
		there[name] = true
		b := c.boxes[name]
		if b == nil {
			blame("container %s is nobody's", name)
			continue
		}
		if err := compareBox(ctx, api, l.ID, b); err != nil {
			blame("container %s: %v", name, err)
		}
		b.id, b.created = l.ID, true
	}
	for name, b := range c.boxes {
		switch {
		case there[name] && b.removal == 2:
			blame("container %s is back after its remove was acknowledged", name)
		case !there[name] && b.created && b.removal == 0:
			blame("container %s is lost: its create was acknowledged", name)
		}
		if !there[name] {
			delete(c.boxes, name)
		}
	}
	c.compareImages(ctx, blame, api)
	c.compareDisk(ctx, blame, m, api, len(list))
	if code, err := runOnce(ctx, api); err != nil || code != 41 {
		blame("a container of the image: exit code %d, %v", code, err)
	}
}

// compareBox compares one container with what is known of it, and takes note
// of what a request that was cut off has done.
func compareBox(ctx context.Context, api *harness.API, id string, b *box) error {
	in, err := api.Inspect(ctx, id)
	if err != nil {
		return err
	}
	st := in.State
	if b.id != "" && b.id != id {
		return fmt.Errorf("has the id %s, which was %s", id, b.id)
	}
	if st.Running || st.Pid != 0 {
		return fmt.Errorf("runs as %d after a boot", st.Pid)
	}
	switch {
	case b.running && st.Status != "exited":
		return fmt.Errorf("is %s; its start was acknowledged", st.Status)
	case b.code >= 0 && (st.Status != "exited" || st.ExitCode != b.code):
		return fmt.Errorf("is %s with exit code %d; wait had told %d", st.Status, st.ExitCode, b.code)
	case b.running && b.stays && b.removal == 0 && st.ExitCode != 255:
		return fmt.Errorf("ran when the power went, and has exit code %d", st.ExitCode)
	case b.running && !b.stays && b.removal == 0 && st.ExitCode != 255 && st.ExitCode != b.own:
		return fmt.Errorf("returns %d, or the power went: exit code %d", b.own, st.ExitCode)
	case !b.running && b.code < 0 && !b.flight && st.Status != "created":
		return fmt.Errorf("is %s; it was never started", st.Status)
	}
	if _, _, err := api.Logs(ctx, id); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	// From here on this is what is known.
	b.running, b.flight, b.code = false, false, -1
	if st.Status == "exited" {
		b.code = st.ExitCode
	}
	b.removal = 0
	return nil
}

// compareImages exports what images hold and compares it with what was sent.
func (c *cutter) compareImages(ctx context.Context, blame func(string, ...any), api *harness.API) {
	for name, want := range c.images {
		got, err := contentOf(ctx, api, name+":1")
		if err != nil {
			blame("image %s, whose import was acknowledged: %v", name, err)
		} else if got != want {
			blame("image %s is not what was imported", name)
		}
	}
}

// contentOf makes a container of an image and hashes its one file.
func contentOf(ctx context.Context, api *harness.API, ref string) (string, error) {
	var made struct{ ID string }
	if err := api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": ref, "Cmd": []string{"none"}}, &made); err != nil {
		return "", err
	}
	defer api.Do(context.WithoutCancel(ctx), "DELETE", "/containers/"+made.ID+"?force=1", nil, nil)
	res, err := api.Open(ctx, "GET", "/containers/"+made.ID+"/archive?path=/blob", nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return "", fmt.Errorf("archive: %s", res.Status)
	}
	r := tar.NewReader(res.Body)
	if _, err := r.Next(); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// compareDisk looks for what no record owns, and reads every blob against its digest.
func (c *cutter) compareDisk(ctx context.Context, blame func(string, ...any), m *Machine, api *harness.API, containers int) {
	bad, err := m.Sh(ctx, `cd /data/escale/content/blobs/sha256 && for b in *; do [ "$(sha256sum <$b | cut -d' ' -f1)" = $b ] || echo $b; done`)
	if err != nil || bad != "" {
		blame("blobs that are not what they are called: %s %v", bad, err)
	}
	var vols struct{ Volumes []struct{ Name string } }
	if err := api.Do(ctx, "GET", "/volumes", nil, &vols); err != nil {
		blame("%v", err)
		return
	}
	for name := range c.volumes {
		if !slices.ContainsFunc(vols.Volumes, func(v struct{ Name string }) bool { return v.Name == name }) {
			blame("volume %s is lost: its create was acknowledged", name)
		}
	}
	// What is deleted behind the engine's back has a minute, at this machine's speed.
	var left error
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if left = c.leftovers(ctx, m, containers, len(vols.Volumes)); left == nil {
			return
		}
		if time.Now().After(end) {
			blame("left over: %v", left)
			return
		}
	}
}

// leftovers compares counts of what lies on the disk with the records.
func (c *cutter) leftovers(ctx context.Context, m *Machine, containers, volumes int) error {
	var errs []error
	for _, x := range []struct {
		what, line string
		want       int
	}{
		{"folders of containers", "ls -A /data/escale/containers | wc -l", containers},
		{"folders of volumes", "find /data/escale/volumes -mindepth 1 -maxdepth 1 -type d | wc -l", volumes},
		{"uploads", "ls -A /data/escale/content/ingest 2>/dev/null | wc -l", 0},
		{"temporaries", "find /data/escale -maxdepth 3 -name '*.tmp*' | wc -l", 0},
		{"run directories", "ls -A /run/escale/containers 2>/dev/null | wc -l", 0},
	} {
		out, err := m.Sh(ctx, x.line)
		if n, _ := strconv.Atoi(out); err != nil || n != x.want {
			errs = append(errs, fmt.Errorf("%s: %s, there should be %d (%v)", x.what, out, x.want, err))
		}
	}
	return errors.Join(errs...)
}

func runOnce(ctx context.Context, api *harness.API) (int, error) {
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 41"}}
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		return 0, err
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return 0, err
	}
	var code struct{ StatusCode int }
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &code); err != nil {
		return 0, err
	}
	return code.StatusCode, api.Do(ctx, "DELETE", "/containers/"+made.ID, nil, nil)
}

// clear removes all there is through the API; then the disk must hold nothing but the image.
func (c *cutter) clear(ctx context.Context, t *testing.T, m *Machine, api *harness.API) {
	for name, b := range c.boxes {
		if err := api.Do(ctx, "DELETE", "/containers/"+b.id+"?force=1&v=1", nil, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var vols struct{ Volumes []struct{ Name string } }
	if err := api.Do(ctx, "GET", "/volumes", nil, &vols); err != nil {
		t.Error(err)
	}
	for _, v := range vols.Volumes {
		if !c.volumes[v.Name] && !strings.HasPrefix(v.Name, "vol-") {
			t.Errorf("volume %s is left without its container", v.Name)
		}
	}
	var images []struct {
		ID       string
		RepoTags []string
	}
	if err := api.Do(ctx, "GET", "/images/json?all=1", nil, &images); err != nil {
		t.Error(err)
	}
	for _, i := range images {
		if !slices.Contains(i.RepoTags, image) {
			if err := api.Do(ctx, "DELETE", "/images/"+i.ID+"?force=1", nil, nil); err != nil {
				t.Errorf("image %s: %v", i.ID, err)
			}
		}
	}
	var snapshots, blobs string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		snapshots, _ = m.Sh(ctx, "ls /data/escale/snapshots/snapshots | wc -l")
		blobs, _ = m.Sh(ctx, "ls /data/escale/content/blobs/sha256 | wc -l")
		if snapshots == "1" && (blobs == "2" || blobs == "3") {
			return
		}
	}
	t.Errorf("with one image of one layer left: %s snapshots, %s blobs", snapshots, blobs)
}
