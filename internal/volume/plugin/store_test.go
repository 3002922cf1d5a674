package plugin

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// keeper is a volume plugin in memory.
type keeper struct {
	mu      sync.Mutex
	vols    map[string]map[string]string // name → options
	mounts  map[string]bool              // "name id"
	calls   []string
	failing string        // the call that answers with an error
	hang    chan struct{} // not nil: nothing is answered before it is closed
	scope   string
	server  *http.Server
	busy    sync.WaitGroup // calls under way
}

func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.busy.Add(1)
	defer k.busy.Done()
	var req struct {
		Name, ID string
		Opts     map[string]string
	}
	json.NewDecoder(r.Body).Decode(&req)
	k.mu.Lock()
	hang := k.hang
	k.mu.Unlock()
	if hang != nil && r.URL.Path != "/Plugin.Activate" {
		select {
		case <-hang:
		case <-r.Context().Done():
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	call := strings.TrimPrefix(r.URL.Path, "/VolumeDriver.")
	k.calls = append(k.calls, call)
	answer := map[string]any{}
	_, there := k.vols[req.Name]
	one := func(name string) map[string]any {
		return map[string]any{"Name": name, "Mountpoint": "/p/" + name, "CreatedAt": "2024-05-06T07:08:09Z", "Status": map[string]any{"on": "shelf"}}
	}
	switch {
	case r.URL.Path == "/Plugin.Activate":
		answer["Implements"] = []string{"VolumeDriver"}
	case call == k.failing:
		answer["Err"] = "it is full"
	case call == "Capabilities":
		answer["Capabilities"] = map[string]string{"Scope": k.scope}
	case call == "Create":
		k.vols[req.Name] = req.Opts
	case call == "List":
		list := []any{}
		for name := range k.vols {
			list = append(list, one(name))
		}
		answer["Volumes"] = list
	case !there:
		answer["Err"] = "no such volume"
	case call == "Get":
		answer["Volume"] = one(req.Name)
	case call == "Mount":
		k.mounts[req.Name+" "+req.ID] = true
		answer["Mountpoint"] = "/p/" + req.Name
	case call == "Unmount":
		if !k.mounts[req.Name+" "+req.ID] {
			answer["Err"] = "not mounted"
		}
		delete(k.mounts, req.Name+" "+req.ID)
	case call == "Remove":
		delete(k.vols, req.Name)
	}
	json.NewEncoder(w).Encode(answer)
}

func (k *keeper) count(call string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, c := range k.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (k *keeper) mounted() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.mounts)
}

// rig is a plugin on a socket, and where a Store keeps its records.
type rig struct {
	*keeper
	dir  string
	told []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	d, err := os.MkdirTemp("", "vol")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{keeper: &keeper{vols: map[string]map[string]string{}, mounts: map[string]bool{}}, dir: d}
	r.listen(t)
	t.Cleanup(func() { r.server.Close(); os.RemoveAll(d) })
	return r
}

// listen lets the plugin begin to answer.
func (r *rig) listen(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(r.dir+"/run", 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", r.dir+"/run/shelf.sock")
	if err != nil {
		t.Fatal(err)
	}
	r.server = &http.Server{Handler: r.keeper}
	go r.server.Serve(l)
}

func (r *rig) Publish(m events.Message) { r.told = append(r.told, string(m.Action)+" "+m.Actor.ID) }

// open begins as a new engine does.
func (r *rig) open(t *testing.T) *Store {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := Open(Config{
		Dir: r.dir + "/volumes", RunDir: r.dir + "/mounts", Events: r, Logger: log,
		Plugins: plugin.NewRegistry(plugin.Config{Sockets: []string{r.dir + "/run"}, Logger: log}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func acquire(t *testing.T, s *Store, r volume.Request, user string) volume.Volume {
	t.Helper()
	v, err := s.Acquire(t.Context(), r, user)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mount(t *testing.T, s *Store, name, user string) {
	t.Helper()
	if path, err := s.Mount(t.Context(), name, user); err != nil || path != "/p/"+name {
		t.Fatalf("mounted at %q, %v", path, err)
	}
}

func left(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(list)
}

func TestLifeOfAPluginsVolume(t *testing.T) {
	r := newRig(t)
	r.scope = "Global"
	s := r.open(t)
	want := volume.Request{Name: "a/b c", Driver: "shelf", Labels: map[string]string{"l": "1"}, Options: map[string]string{"o": "2"}}
	v := acquire(t, s, want, "")
	if v.Name != "a/b c" || v.Driver != "shelf" || v.Scope != "global" || v.Labels["l"] != "1" || v.Path != "" {
		t.Errorf("made %+v", v)
	}
	acquire(t, s, volume.Request{Name: "a/b c"}, "c1")
	if n := r.count("Create"); n != 1 {
		t.Errorf("created %d times", n)
	}
	got, err := s.Get(t.Context(), "a/b c")
	if err != nil || got.Path != "/p/a/b c" || got.Status["on"] != "shelf" || got.CreatedAt.Year() != 2024 || !slices.Equal(got.Users, []string{"c1"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Remove(t.Context(), "a/b c", true); !errdefs.IsConflict(err) || err.Error() != "remove a/b c: volume is in use - [c1]" {
		t.Errorf("removed in use: %v", err)
	}
	s = r.open(t)
	if list, w := s.List(t.Context()); len(list) != 1 || list[0].Labels["l"] != "1" || list[0].Options["o"] != "2" || w != nil {
		t.Errorf("listed %+v, %v", list, w)
	}
	if err := s.Remove(t.Context(), "a/b c", false); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "a/b c", false); !errdefs.IsNotFound(err) || err.Error() != "get a/b c: no such volume" {
		t.Errorf("removed twice: %v", err)
	}
	if err := s.Remove(t.Context(), "a/b c", true); err != nil {
		t.Errorf("removed by force: %v", err)
	}
	if n := left(t, r.dir+"/volumes"); n != 0 || len(r.vols) != 0 {
		t.Errorf("left: %d records, %v", n, r.vols)
	}
	if got := strings.Join(r.told, ","); got != "create a/b c,destroy a/b c" {
		t.Errorf("told: %s", got)
	}
}

func TestRefusedByAPlugin(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	if _, err := s.Acquire(t.Context(), volume.Request{Name: "x", Driver: "nosuch"}, "c"); !errdefs.IsNotFound(err) ||
		err.Error() != `create x: error looking up volume plugin nosuch: plugin "nosuch" not found` {
		t.Errorf("no plugin: %v", err)
	}
	r.failing = "Create"
	if _, err := s.Acquire(t.Context(), volume.Request{Name: "x", Driver: "shelf"}, "c"); err == nil || err.Error() != "create x: it is full" {
		t.Errorf("refused: %v", err)
	}
	r.failing = "Mount"
	acquire(t, s, volume.Request{Name: "x", Driver: "shelf"}, "c")
	if _, err := s.Mount(t.Context(), "x", "c"); err == nil || !strings.HasSuffix(err.Error(), ": it is full") {
		t.Errorf("mounted: %v", err)
	}
	if n := left(t, r.dir+"/mounts"); n != 0 {
		t.Errorf("%d records of what was not mounted", n)
	}
	r.failing = "Remove"
	s.Release("x", "c")
	if err := s.Remove(t.Context(), "x", false); err == nil || err.Error() != "remove x: it is full" || !s.Has("x") {
		t.Errorf("removed: %v", err)
	}
	if err := s.Remove(t.Context(), "x", true); err == nil || s.Has("x") {
		t.Errorf("removed by force: %v", err)
	}
	// the plugin still has it, and so it is found again
	if v, err := s.Get(t.Context(), "x"); err != nil || v.Driver != "shelf" {
		t.Errorf("found %+v, %v", v, err)
	}
	// until the plugin loses it
	delete(r.vols, "x")
	if _, err := s.Get(t.Context(), "x"); !errdefs.IsNotFound(err) || s.Has("x") {
		t.Errorf("lost: %v", err)
	}
	acquire(t, s, volume.Request{Name: "y", Driver: "shelf"}, "c")
	delete(r.vols, "y")
	if _, err := s.Acquire(t.Context(), volume.Request{Name: "y"}, "d"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "was not found in the driver") {
		t.Errorf("lost in use: %v", err)
	}
	if _, err := s.Acquire(t.Context(), volume.Request{Name: "y", Driver: "other"}, "d"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "driver 'shelf' already has volume 'y'") {
		t.Errorf("another's: %v", err)
	}
}

// The plugin is told each mount and its end once, whatever becomes of the engine.
func TestMountsOutliveEngines(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	acquire(t, s, volume.Request{Name: "v", Driver: "shelf"}, "c1")
	for _, user := range []string{"c1", "c2", "c1"} {
		mount(t, s, "v", user)
	}
	if n := r.mounted(); n != 2 {
		t.Errorf("%d mounts", n)
	}
	if err := s.Unmount("v", "c2"); err != nil || r.mounted() != 1 {
		t.Errorf("%v, %d mounts", err, r.mounted())
	}
	mount(t, s, "v", "c3")

	s = r.open(t) // the engine was killed; c1 lives, c3 has ended
	acquire(t, s, volume.Request{Name: "v", Driver: "shelf", Held: true}, "c1")
	calls := len(r.calls)
	mount(t, s, "v", "c1")
	if len(r.calls) != calls {
		t.Errorf("asked for what is known: %v", r.calls[calls:])
	}
	s.Settle()
	s.loops.Wait()
	if n := r.mounted(); n != 1 {
		t.Errorf("%d mounts after settling", n)
	}
	if v := s.view(s.entry("v")); v.Path != "/p/v" {
		t.Errorf("lies at %q", v.Path)
	}
	if err := s.Unmount("v", "c1"); err != nil || r.mounted() != 0 {
		t.Errorf("%v, %d mounts", err, r.mounted())
	}
	if err := s.Unmount("v", "c1"); err != nil {
		t.Errorf("twice: %v", err)
	}
	if n := left(t, r.dir+"/mounts"); n != 0 {
		t.Errorf("%d records of nothing", n)
	}

	// killed between the record and the plugin's answer
	e := s.entry("v")
	e.mounts["c4"] = mounted{ID: "abc"}
	if err := s.save(e); err != nil {
		t.Fatal(err)
	}
	s = r.open(t)
	mount(t, s, "v", "c4")
	if !r.mounts["v abc"] {
		t.Errorf("mounted under another id: %v", r.mounts)
	}
}

// A plugin that dies while its volume is mounted: the volume is shown, can be
// removed by force, and a plugin that comes back is told what it missed.
func TestPluginDies(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	acquire(t, s, volume.Request{Name: "v", Driver: "shelf"}, "c")
	acquire(t, s, volume.Request{Name: "w", Driver: "shelf"}, "")
	mount(t, s, "v", "c")
	r.server.Close() // its socket goes, too
	if err := s.Unmount("v", "c"); err != nil {
		t.Errorf("unmounted: %v", err)
	}
	if v, err := s.Get(t.Context(), "v"); err != nil || v.Driver != "shelf" {
		t.Errorf("got %+v, %v", v, err)
	}
	if list, _ := s.List(t.Context()); len(list) != 2 {
		t.Errorf("listed %+v", list)
	}
	if err := s.Remove(t.Context(), "w", false); err == nil || !strings.Contains(err.Error(), "remove w: error looking up volume plugin shelf") {
		t.Errorf("removed: %v", err)
	}
	if err := s.Remove(t.Context(), "w", true); err != nil || s.Has("w") {
		t.Errorf("removed by force: %v", err)
	}
	r.listen(t)
	if n := r.mounted(); n != 1 {
		t.Fatalf("%d mounts", n)
	}
	mount(t, s, "v", "d")
	if n := r.mounted(); n != 1 || len(s.entry("v").mounts) != 1 {
		t.Errorf("%d mounts at the plugin, here %v", n, s.entry("v").mounts)
	}
}

// A plugin that hangs holds up its own volumes, and those only as long as somebody waits.
func TestPluginHangs(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	acquire(t, s, volume.Request{Name: "v", Driver: "shelf"}, "c")
	r.mu.Lock()
	r.hang = make(chan struct{})
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Mount(ctx, "v", "c"); err == nil {
		t.Error("mounted")
	}
	if _, err := s.Get(t.Context(), "nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("another volume: %v", err)
	}
	list, w := s.List(t.Context())
	if len(list) != 1 || list[0].Name != "v" || len(w) != 1 || !strings.Contains(w[0], "list shelf: ") {
		t.Errorf("listed %+v, %q", list, w)
	}
	if err := s.Unmount("v", "x"); err != nil { // nothing is mounted for it
		t.Error(err)
	}
	go func() { time.Sleep(50 * time.Millisecond); s.Close() }()
	if _, err := s.Mount(t.Context(), "v", "c"); err == nil {
		t.Error("mounted by an engine that ends")
	}
	r.busy.Wait() // it has seen that nobody waits any more
	close(r.hang)
	r.mu.Lock()
	r.hang = nil
	r.mu.Unlock()
	s = r.open(t)
	mount(t, s, "v", "d") // and what was left is told
	if n := r.mounted(); n != 1 {
		t.Errorf("%d mounts: %v", n, s.entry("v").mounts)
	}
}

func TestDamagedRecords(t *testing.T) {
	r := newRig(t)
	s := r.open(t)
	acquire(t, s, volume.Request{Name: "good", Driver: "shelf"}, "")
	for _, text := range []string{"", "{", "[]", `{"Version":1,"Name":"x","Driver":"y"}`, `{"Version":1}`} {
		for _, dir := range []string{"/volumes/", "/mounts/"} {
			os.MkdirAll(r.dir+dir, 0o755)
			if err := os.WriteFile(filepath.Join(r.dir+dir, fileOf("bad")), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if s := r.open(t); !s.Has("good") || s.Has("bad") || s.Has("x") {
			t.Errorf("%q: %v", text, s.byName)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "volumes", fileOf("bad")), []byte(`{"Version":2,"Name":"bad"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.cfg); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a later format: %v", err)
	}
}

// noLocal is no volumes.
type noLocal struct{ volume.Driver }

func (noLocal) Has(string) bool { return false }

// Many users of many volumes at once, and removals between.
func TestPluginRace(t *testing.T) {
	r := newRig(t)
	s := volume.NewSet(noLocal{}, r.open(t))
	var wg sync.WaitGroup
	for i := range 6 {
		user, name := string(rune('a'+i)), string(rune('v'+i%2))
		wg.Go(func() {
			for range 10 {
				if _, err := s.Acquire(t.Context(), volume.Request{Name: name, Driver: "shelf"}, user); err != nil {
					if !errdefs.IsConflict(err) {
						t.Error(err)
					}
					continue
				}
				if _, err := s.Mount(t.Context(), name, user); err != nil {
					t.Error(err)
				}
				if err := s.Unmount(name, user); err != nil {
					t.Error(err)
				}
				s.Release(name, user)
				if err := s.Remove(t.Context(), name, true); err != nil && !errdefs.IsConflict(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := r.mounted(); n != 0 {
		t.Errorf("%d mounts left", n)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Name":"v","Driver":"d","Users":{"c":{"ID":"x","Path":"/p"}}}`))
	f.Add([]byte(`{"Version":9}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecord(fileOf("v"), b); err == nil && (r.Name != "v" || r.Driver == "" || r.Version > format) {
			t.Errorf("%+v", r)
		}
		m, err := parseMounts(fileOf("v"), b)
		for user, one := range m.Users {
			if err == nil && one.ID == "" {
				t.Errorf("%s is mounted under no id", user)
			}
		}
	})
}
