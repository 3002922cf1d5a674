package server

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// journal is what a disk did, in order.
type journal struct {
	mu  sync.Mutex
	ops []string // "op path", of paths below the root
}

func (j *journal) watch(r *rig) {
	r.s.store.disk.watch = func(op, name string) {
		rel, err := filepath.Rel(r.s.cfg.Root, name)
		if err != nil {
			panic(err)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.ops = append(j.ops, op+" "+rel)
	}
}

// last is where something happened for the last time; -1: never.
func (j *journal) last(op string) int {
	for i, o := range slices.Backward(j.ops) {
		if o == op {
			return i
		}
	}
	return -1
}

// lost are the files and directories of which a power cut could take the entry
// in their directory: it was not brought to the disk since it is there.
func (j *journal) lost(r *rig) (out []string) {
	r.t.Helper()
	top := filepath.Join(r.s.cfg.Root, layout)
	err := filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "_uploads" {
			return filepath.SkipDir
		}
		rel, _ := filepath.Rel(r.s.cfg.Root, name)
		op := "rename "
		if e.IsDir() {
			op = "mkdir "
		}
		came, kept := j.last(op+rel), j.last("sync "+filepath.Dir(rel))
		if came < 0 || kept < came {
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// When a manifest is answered for, it and all it leads to is on the disk: also
// where two clients brought the same.
func TestOnTheDiskBeforeTheAnswer(t *testing.T) {
	r := start(t, nil)
	r.want(200, "GET", "/v2/", nil)
	var j journal
	j.watch(r)
	shared := random(1000)
	for range 5 {
		var clients sync.WaitGroup
		for _, name := range []string{"a/b/one", "a/b/two", "other"} {
			clients.Go(func() {
				if _, err := r.push(name, "t", []byte("{}"), shared, random(10)); err != nil {
					t.Error(err)
				}
			})
		}
		clients.Wait()
		if lost := j.lost(r); len(lost) > 0 {
			t.Fatalf("a power cut could take\n%s\nafter\n%s", strings.Join(lost, "\n"), strings.Join(j.ops, "\n"))
		}
	}
	for i, op := range j.ops {
		blob, ok := strings.CutPrefix(op, "rename "+strings.TrimPrefix(blobRoot, "/"))
		if ok && (i == 0 || !slices.ContainsFunc(j.ops[:i], func(o string) bool {
			return strings.HasPrefix(o, "sync ") && (strings.HasSuffix(o, "/data") || strings.HasPrefix(o, "sync tmp/"))
		})) {
			t.Errorf("%s came to its place before its content was on the disk", blob)
		}
	}
	r.s.store.disk.mu.Lock()
	defer r.s.store.disk.mu.Unlock()
	for name := range r.s.store.disk.fresh {
		if !strings.HasSuffix(name, "/_uploads") {
			t.Errorf("%s is remembered for ever", name)
		}
	}
	if n := len(r.s.store.disk.moving); n != 0 {
		t.Errorf("%d files are still on their way", n)
	}
}

// Nobody sees a file that a power cut may take.
func TestSeenOnlyWhenOnTheDisk(t *testing.T) {
	r := start(t, nil)
	r.want(200, "GET", "/v2/", nil)
	d := r.s.store.disk
	reached, seen := make(chan bool), make(chan bool)
	var once sync.Once
	d.watch = func(op, name string) {
		if op == "rename" && strings.HasSuffix(name, "/x/file") {
			once.Do(func() {
				reached <- true
				<-reached
			})
		}
	}
	go func() {
		if err := d.PutContent(t.Context(), "/x/file", []byte("content")); err != nil {
			t.Error(err)
		}
	}()
	<-reached
	go func() {
		defer close(seen)
		if b, err := d.GetContent(t.Context(), "/x/file"); err != nil || string(b) != "content" {
			t.Errorf("%q %v", b, err)
		}
		if _, err := d.Stat(t.Context(), "/x/file"); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-seen:
		t.Error("seen before it was on the disk")
	case <-time.After(50 * time.Millisecond):
	}
	reached <- true
	<-seen
}

// A manifest that is removed loses its tags first: who is killed in between
// leaves no tag that means nothing.
func TestTagsGoBeforeTheirManifest(t *testing.T) {
	r := start(t, nil)
	d := r.mustPush("x", "v1", []byte("{}"))
	r.mustPush("x", "v2", []byte("{}"))
	r.mustPush("x", "other", []byte(`{"o":1}`))
	var j journal
	j.watch(r)
	r.want(202, "DELETE", "/v2/x/manifests/"+string(d), nil)
	manifest := j.last("remove " + strings.TrimPrefix(revision("x", d), "/") + "/link")
	for _, tag := range []string{"v1", "v2"} {
		if at := j.last("remove " + strings.TrimPrefix(tagDir("x", tag), "/")); at < 0 || at > manifest {
			t.Errorf("%s went at %d, its manifest at %d", tag, at, manifest)
		}
		r.want(404, "GET", "/v2/x/manifests/"+tag, nil, "Accept", accept)
	}
	r.mustPull("x", "other")
	r.want(404, "DELETE", "/v2/x/manifests/"+string(d), nil)
}

// A tag that is set anew while the manifest it meant is removed stays.
func TestTagMovedWhileItsManifestGoes(t *testing.T) {
	r := start(t, nil)
	old := r.mustPush("x", "t", []byte("{}"), []byte("old"))
	next := r.mustPush("x", "next", []byte("{}"), []byte("next"))
	pushed := make(chan struct{})
	var once sync.Once
	r.s.store.disk.watch = func(op, name string) {
		if op != "remove" || !strings.HasSuffix(name, tagDir("x", "t")) {
			return
		}
		once.Do(func() {
			go func() {
				defer close(pushed)
				if _, err := r.push("x", "t", []byte("{}"), []byte("next")); err != nil {
					t.Error(err)
				}
			}()
			select {
			case <-pushed: // it did not wait, and what it was answered for goes now
			case <-time.After(300 * time.Millisecond):
			}
		})
	}
	r.want(202, "DELETE", "/v2/x/manifests/"+string(old), nil)
	<-pushed
	if h, _ := r.want(200, "GET", "/v2/x/manifests/t", nil, "Accept", accept); h.Get("Docker-Content-Digest") != string(next) {
		t.Errorf("the tag means %v, want %s%s", h, next, onPlace(r.s.cfg.Root, "x", "t"))
	}
	r.s.repos.mu.Lock()
	defer r.s.repos.mu.Unlock()
	if len(r.s.repos.open) != 0 {
		t.Errorf("locks are left: %v", r.s.repos.open)
	}
}
