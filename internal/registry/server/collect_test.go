package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func upTo(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err)
	}
	return int(i.Int64())
}

// onDisk counts the blobs in a registry's directory.
func (r *rig) onDisk() int {
	r.t.Helper()
	if inBucket != nil {
		n := 0
		for _, k := range r.keys(false) {
			if strings.Contains(k, blobRoot) && strings.HasSuffix(k, "/data") {
				n++
			}
		}
		return n
	}
	list, err := filepath.Glob(filepath.Join(r.s.cfg.Root, blobRoot, "*/*/*/data"))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(list)
}

func TestCollect(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	r.mustPush("lab/a", "v1", []byte(`{"a":1}`), []byte("shared"), []byte("only of a"))
	gone := r.mustPush("lab/a", "v2", []byte(`{"a":2}`), []byte("shared"), []byte("only of v2"))
	r.mustPush("lab/b", "v1", []byte(`{"b":1}`), []byte("shared"))
	r.mustBlob("lab/b", []byte("pushed, and never used"))
	r.want(202, "DELETE", "/v2/lab/a/manifests/"+string(gone), nil)
	if c := r.collect(Options{Grace: time.Hour}); len(c.Blobs) != 0 {
		t.Fatalf("within the grace %v was taken", c.Blobs)
	}
	clock.turn(2 * time.Hour)
	dry := r.collect(Options{Grace: time.Hour, DryRun: true})
	if len(dry.Blobs) != 4 || r.onDisk() != 10 {
		t.Fatalf("dry run: %+v, %d blobs on the disk; want 4 named and all there", dry, r.onDisk())
	}
	c := r.collect(Options{Grace: time.Hour})
	slices.Sort(dry.Blobs)
	slices.Sort(c.Blobs)
	if !slices.Equal(c.Blobs, dry.Blobs) || c.Bytes != dry.Bytes || c.Kept != 6 || r.onDisk() != 6 {
		t.Fatalf("took %+v, said before %+v; %d left", c, dry, r.onDisk())
	}
	r.mustPull("lab/a", "v1")
	r.mustPull("lab/b", "v1")
	r.want(404, "HEAD", "/v2/lab/b/blobs/"+string(digest.FromString("pushed, and never used")), nil)
	r.mustBlob("lab/b", []byte("pushed, and never used")) // and again
}

// What a client asked for it may rely on: also after the registry was restarted.
func TestCollectLeases(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	asked, other := r.mustBlob("x", []byte("asked for")), r.mustBlob("x", []byte("not asked for"))
	clock.turn(3 * time.Hour)
	r.want(200, "HEAD", "/v2/x/blobs/"+string(asked), nil)
	root := r.s.cfg.Root
	if err := r.s.close(); err != nil {
		t.Fatal(err)
	}
	r = start(t, func(c *Config) { c.Root = root })
	r.s.now = clock.now
	c := r.collect(Options{Grace: time.Hour})
	if !slices.Equal(c.Blobs, []string{string(other)}) {
		t.Errorf("took %v, want %s only", c.Blobs, other)
	}
	// One that is held is not taken, however old.
	release := r.s.leases.hold(string(asked))
	clock.turn(24 * time.Hour)
	if c := r.collect(Options{Grace: time.Hour}); len(c.Blobs) != 0 {
		t.Errorf("took %v, which a client is busy with", c.Blobs)
	}
	release(false)
	if c := r.collect(Options{Grace: time.Hour}); len(c.Blobs) != 1 {
		t.Errorf("took %v, want the one that was held", c.Blobs)
	}
}

func TestCollectUntagged(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	child := r.mustPush("m", "", []byte(`{}`), []byte("of the child"))
	stray := r.mustPush("m", "", []byte(`{"stray":1}`), []byte("of the stray"))
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, child, len(image([]byte(`{}`), []byte("of the child"))))
	r.want(201, "PUT", "/v2/m/manifests/multi", []byte(index), "Content-Type", ocispec.MediaTypeImageIndex)
	signature := r.refer("m", child, "application/x.signature", nil)
	lost := r.refer("m", stray, "application/x.signature", nil)
	clock.turn(2 * time.Hour)
	if c := r.collect(Options{Grace: time.Hour}); len(c.Manifests)+len(c.Blobs) != 0 {
		t.Errorf("unasked for, took %+v", c)
	}
	c := r.collect(Options{Grace: time.Hour, Untagged: true})
	slices.Sort(c.Manifests)
	want := []string{"m@" + string(stray), "m@" + string(lost)}
	slices.Sort(want)
	if !slices.Equal(c.Manifests, want) {
		t.Errorf("took %v, want %v", c.Manifests, want)
	}
	r.mustPull("m", "multi")
	r.mustPull("m", string(signature))
	if got := r.referrers("m", child, ""); len(got) != 1 {
		t.Errorf("referrers of the child: %v", got)
	}
	// Who asks for a manifest keeps it, with all it leads to.
	r.want(202, "DELETE", "/v2/m/manifests/multi", nil)
	clock.turn(2 * time.Hour)
	r.want(200, "HEAD", "/v2/m/manifests/"+string(child), nil, "Accept", accept)
	c = r.collect(Options{Grace: time.Hour, Untagged: true})
	if len(c.Manifests) == 0 {
		t.Error("the index without a tag was not taken")
	}
	r.mustPull("m", string(child))
}

func TestRetention(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	for i := range 5 {
		tag := fmt.Sprintf("ci-%d", i)
		r.mustPush("lab/app", tag, fmt.Appendf(nil, `{"n":%d}`, i), []byte("layer"))
		old := time.Now().Add(time.Duration(i-5) * 24 * time.Hour)
		link := filepath.Join(r.s.cfg.Root, tagDir("lab/app", tag), "current/link")
		if err := os.Chtimes(link, old, old); err != nil {
			t.Fatal(err)
		}
	}
	r.mustPush("lab/app", "v1", []byte(`{"v":1}`), []byte("layer"))
	r.mustPush("other", "ci-0", []byte(`{"o":1}`), []byte("layer"))
	clock.turn(2 * time.Hour)
	rule := func(s string) []Rule {
		x, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return []Rule{x}
	}
	o := Options{Grace: time.Hour, Untagged: true, DryRun: true, Rules: rule("lab/*:ci-* last=3 older=2d")}
	if c := r.collect(o); !slices.Equal(c.Tags, []string{"lab/app:ci-0", "lab/app:ci-1"}) {
		t.Errorf("dry run: %v", c.Tags)
	}
	r.mustPull("lab/app", "ci-0")
	o.DryRun = false
	if c := r.collect(o); len(c.Tags) != 2 || len(c.Manifests) != 1 {
		t.Errorf("took tags %v, manifests %v; want one to stay that was just asked for by its tag", c.Tags, c.Manifests)
	}
	clock.turn(2 * time.Hour)
	if c := r.collect(o); len(c.Tags) != 0 || len(c.Manifests) != 1 {
		t.Errorf("took tags %v, manifests %v", c.Tags, c.Manifests)
	}
	for _, tag := range []string{"ci-2", "ci-3", "ci-4", "v1"} {
		r.mustPull("lab/app", tag)
	}
	r.mustPull("other", "ci-0")
	r.want(404, "GET", "/v2/lab/app/manifests/ci-0", nil, "Accept", accept)
}

func TestCollectUploads(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	h, _ := r.want(202, "POST", "/v2/x/blobs/uploads/", nil)
	h, _ = r.want(202, "PATCH", h.Get("Location"), []byte("some"), "Content-Type", "application/octet-stream")
	clock.turn(30 * time.Minute)
	if c := r.collect(Options{}); len(c.Uploads) != 0 {
		t.Errorf("took %v, half an hour old", c.Uploads)
	}
	clock.turn(2 * time.Hour)
	if c := r.collect(Options{}); len(c.Uploads) != 1 || c.Bytes != 4 {
		t.Errorf("took %+v, want the upload", c)
	}
	r.want(404, "PATCH", h.Get("Location"), []byte("more"), "Content-Type", "application/octet-stream")
}

func TestCollectRequest(t *testing.T) {
	r := start(t, nil)
	r.want(405, "GET", gcPath, nil)
	r.want(400, "POST", gcPath+"?grace=soon", nil)
	r.want(400, "POST", gcPath+"?retain=x", nil)
	r.mustBlob("x", []byte("garbage"))
	time.Sleep(20 * time.Millisecond) // the age of a file is told in ticks of the kernel
	_, b := r.want(200, "POST", gcPath+"?grace=0s&dryrun=1", nil)
	if !strings.Contains(string(b), string(digest.FromString("garbage"))) || r.onDisk() != 1 {
		t.Errorf("dry run: %s, %d blobs", b, r.onDisk())
	}
	r.want(200, "POST", gcPath+"?grace=0s", nil)
	if r.onDisk() != 0 {
		t.Error("not taken")
	}
	r.s.collecting.Lock()
	r.want(409, "POST", gcPath, nil)
	r.s.collecting.Unlock()
}

// By the clock a registry does what it was configured for: garbage, tags that
// rules are about, and what has no tag then.
func TestCollectByClock(t *testing.T) {
	r := start(t, func(c *Config) {
		c.Every, c.Grace, c.Untagged = 20*time.Millisecond, time.Nanosecond, true
		c.Retain = []Rule{{Repos: "lab/**", Tags: "ci-*", Last: 1, Older: -1}}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.s.collectByClock(ctx) }()
	time.Sleep(50 * time.Millisecond)
	if r.s.opened() {
		t.Error("the clock opened a registry that nobody asked")
	}
	for _, tag := range []string{"ci-1", "ci-2", "v1"} {
		for try := 0; ; try++ { // with so little grace a push may be refused, and not again
			if _, err := r.push("lab/a/b", tag, []byte(`{"tag":"`+tag+`"}`), []byte("layer of "+tag)); err == nil {
				break
			} else if try > 50 {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond) // the age of a file is told in ticks of the kernel
	}
	for end := time.Now().Add(10 * time.Second); r.onDisk() != 6; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d blobs are left, want the 6 of two images", r.onDisk())
			break
		}
	}
	cancel()
	<-done
	r.mustPull("lab/a/b", "ci-2")
	r.mustPull("lab/a/b", "v1")
	r.want(404, "GET", "/v2/lab/a/b/manifests/ci-1", nil, "Accept", accept)
}

// Clients push, pull and delete while collections run one after the other, with
// hardly any grace, so that they meet. A manifest that was taken in can be pulled whole; at the
// end nothing is left over.
func TestCollectBesideClients(t *testing.T) {
	r := start(t, nil)
	pool := make([][]byte, 8) // layers that many images share
	for i := range pool {
		pool[i] = random(2000)
	}
	const workers, rounds = 6, 12
	var clients, collector sync.WaitGroup
	var pushes, refused, collections, taken atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	collector.Go(func() {
		for ctx.Err() == nil {
			c, err := r.s.Collect(ctx, Options{Grace: time.Duration(upTo(200)) * time.Millisecond, Untagged: true})
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			collections.Add(1)
			taken.Add(int64(len(c.Blobs)))
			time.Sleep(time.Duration(upTo(20)) * time.Millisecond)
		}
	})
	for w := range workers {
		clients.Go(func() {
			name := fmt.Sprintf("busy/w%d", w%3)
			for i := range rounds {
				tag := fmt.Sprintf("w%d-%d", w, i%4)
				var d digest.Digest
				config, own := random(50), random(500)
				shared := pool[upTo(len(pool))]
				for try := 0; ; try++ {
					var err error
					if d, err = r.push(name, tag, config, shared, own); err == nil {
						break
					}
					// What was asked for before a collection began it may take: the
					// push is refused then, and a second one goes well.
					if refused.Add(1); try > 50 || !strings.Contains(err.Error(), "MANIFEST_BLOB_UNKNOWN") {
						t.Errorf("push: %v", err)
						return
					}
				}
				pushes.Add(1)
				if err := r.pull(name, tag); err != nil {
					t.Errorf("after %d collections: %v", collections.Load(), err)
					return
				}
				if i%3 == 0 {
					if status, _, b, err := r.try("DELETE", "/v2/"+name+"/manifests/"+string(d), nil); err != nil || status != http.StatusAccepted {
						t.Errorf("delete: %d %s %v", status, b, err)
					}
				}
			}
		})
	}
	clients.Wait()
	stop()
	collector.Wait()
	t.Logf("%d pushes, %d refused, %d collections took %d blobs", pushes.Load(), refused.Load(), collections.Load(), taken.Load())
	if collections.Load() < 2 || taken.Load() == 0 {
		t.Errorf("the collector hardly ran")
	}
	r.check()
	r.empty()
}

// check pulls whatever has a tag.
func (r *rig) check() {
	r.t.Helper()
	err := r.s.store.repos(r.t.Context(), func(name string) error {
		tags, err := r.s.store.list(r.t.Context(), tagsDir(name))
		for _, tag := range tags {
			if _, _, err := r.s.store.tagged(r.t.Context(), name, tag); err == nil {
				if err := r.pull(name, tag); err != nil {
					r.t.Errorf("%s:%s: %v%s", name, tag, err, onPlace(r.s.cfg.Root, name, tag))
				}
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// empty removes every tag and looks for what is left then.
func (r *rig) empty() {
	r.t.Helper()
	time.Sleep(20 * time.Millisecond) // the age of a file is told in ticks of the kernel
	r.collect(Options{Untagged: true, Rules: []Rule{{Repos: "**", Tags: "*", Last: 0, Older: -1}}})
	if n := r.onDisk(); n != 0 {
		r.t.Errorf("%d blobs are left that nothing leads to", n)
	}
	links, err := filepath.Glob(filepath.Join(r.s.cfg.Root, repositories, "*/*/_layers/*/*"))
	if err != nil || len(links) != 0 {
		r.t.Errorf("links are left: %v %v", links, err)
	}
}
