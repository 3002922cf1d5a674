package local

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// told are the events, as "action name".
type told struct {
	mu  sync.Mutex
	all []string
}

func (t *told) Publish(m events.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, string(m.Action)+" "+m.Actor.ID)
}

func open(t *testing.T, dir string) (*Store, *told) {
	t.Helper()
	seen := new(told)
	s, err := Open(Config{Dir: dir, Events: seen, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s, seen
}

func create(t *testing.T, s *Store, r volume.Request) volume.Volume {
	t.Helper()
	v, err := s.Acquire(context.Background(), r, "")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLifeOfAVolume(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	s, seen := open(t, dir)
	v := create(t, s, volume.Request{Name: "data", Labels: map[string]string{"a": "b"}})
	if v.Path != filepath.Join(dir, "data", "_data") || v.Labels["a"] != "b" || v.CreatedAt.IsZero() {
		t.Errorf("made %+v", v)
	}
	if err := os.WriteFile(filepath.Join(v.Path, "f"), make([]byte, 123), 0o644); err != nil {
		t.Fatal(err)
	}
	again := create(t, s, volume.Request{Name: "data", Labels: map[string]string{"a": "c"}})
	if again.Labels["a"] != "b" {
		t.Errorf("an existing volume changed: %+v", again)
	}
	if _, err := s.Acquire(context.Background(), volume.Request{Name: "data"}, "c0ffee"); err != nil {
		t.Fatal(err)
	}

	s, _ = open(t, dir) // a new engine
	got, err := s.Get(t.Context(), "data")
	if err != nil || got.Labels["a"] != "b" || !got.CreatedAt.Equal(v.CreatedAt) || len(got.Users) != 0 {
		t.Errorf("read again: %+v, %v", got, err)
	}
	if n, err := s.Size(context.Background(), "data"); n != 123 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := s.Acquire(context.Background(), volume.Request{Name: "data"}, "c0ffee"); err != nil {
		t.Fatal(err)
	}
	err = s.Remove(context.Background(), "data", true)
	if !errdefs.IsConflict(err) || err.Error() != "remove data: volume is in use - [c0ffee]" {
		t.Errorf("removed in use: %v", err)
	}
	s.Release("data", "c0ffee")
	if err := s.Remove(context.Background(), "data", false); err != nil {
		t.Error(err)
	}
	if err := s.Remove(context.Background(), "data", false); !errdefs.IsNotFound(err) || err.Error() != "get data: no such volume" {
		t.Errorf("removed twice: %v", err)
	}
	if err := s.Remove(context.Background(), "data", true); err != nil {
		t.Errorf("removed by force: %v", err)
	}
	if left := names(t, dir); left != "" {
		t.Errorf("left: %s", left)
	}
	if got := strings.Join(seen.all, ","); got != "create data" {
		t.Errorf("told: %s", got)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range list {
		out = append(out, d.Name())
	}
	return strings.Join(out, ",")
}

// What an engine that was killed between two steps left goes; what somebody else
// put there, and what older engines wrote, stays.
func TestOpenCollects(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{
		".new-1/volume.json":   "{}", // killed before the data directory
		".new-2/_data/f":       "x",  // killed before the rename
		".removed-ABC/_data/f": "x",  // killed before the data was deleted
		"plain/_data/f":        "x",  // copied there by somebody
		"old/_data/f":          "x",  // of the format before versions
		"old/volume.json":      `{"Name":"old","Driver":"local","Path":"/elsewhere","Labels":{"k":"v"},"CreatedAt":"2024-05-06T07:08:09Z"}`,
		"broken/_data/f":       "x",
		"broken/volume.json":   `{"Name":`,
		"nodata/something":     "x",
		"a file":               "x",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := open(t, dir)
	var got []string
	list, _ := s.List(t.Context())
	for _, v := range list {
		got = append(got, v.Name)
	}
	if s := strings.Join(got, ","); s != "broken,old,plain" {
		t.Errorf("volumes: %s", s)
	}
	if left := names(t, dir); left != "a file,broken,nodata,old,plain" {
		t.Errorf("left: %s", left)
	}
	old, err := s.Get(t.Context(), "old")
	if err != nil || old.Labels["k"] != "v" || old.CreatedAt.Year() != 2024 || old.Path != filepath.Join(dir, "old", "_data") {
		t.Errorf("old: %+v, %v", old, err)
	}
}

func TestLaterFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	create(t, s, volume.Request{Name: "data"})
	b, _ := json.Marshal(record{Version: format + 1, Name: "data"})
	if err := os.WriteFile(filepath.Join(dir, "data", recordFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.cfg); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("opened: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	s, seen := open(t, dir)
	for _, c := range []struct {
		r    volume.Request
		want string
		is   func(error) bool
	}{
		{volume.Request{Name: "x"}, "create x: volume name is too short, names should be at least two alphanumeric characters", errdefs.IsInvalidArgument},
		{volume.Request{Name: "../up"}, `create ../up: "../up" includes invalid characters for a local volume name`, errdefs.IsInvalidArgument},
		{volume.Request{Name: ".hidden"}, `includes invalid characters`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "a\nb"}, `includes invalid characters`, errdefs.IsInvalidArgument},
		{volume.Request{Name: strings.Repeat("a", 256)}, `name is too long`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"x": "y"}}, `create ab: invalid option: "x"`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"type": "nfs"}}, `create ab: missing required option: "device"`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"o": "bind"}}, `missing required option: "device"`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"size": "1g"}}, `quota size requested but no quota support`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"size": "much"}}, `create ab: invalid size: 'much'`, errdefs.IsInvalidArgument},
		{volume.Request{Name: "ab", Options: map[string]string{"type": "cifs", "device": "//server:1234/share"}}, `port not allowed in CIFS device URL, include 'port' in 'o='`, errdefs.IsInvalidArgument},
	} {
		if _, err := s.Acquire(context.Background(), c.r, ""); err == nil || !strings.Contains(err.Error(), c.want) || !c.is(err) {
			t.Errorf("%+v: %v, want %q", c.r, err, c.want)
		}
	}
	if left := names(t, dir); left != "" || len(seen.all) > 0 {
		t.Errorf("left %q, told %q", left, seen.all)
	}
}

// Mounted as long as somebody has it, also over the death of an engine; never
// deleted through.
func TestMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a tmpfs")
	}
	ctx := context.Background()
	dir := t.TempDir()
	s, _ := open(t, dir)
	v := create(t, s, volume.Request{Name: "tmp", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}})
	t.Cleanup(func() { unmountAt(v.Path) })
	is := func(want bool, when string) {
		t.Helper()
		if on, err := mounted(v.Path); on != want || err != nil {
			t.Errorf("%s: mounted %v, %v", when, on, err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mount := func(user string) {
		t.Helper()
		path, err := s.Mount(ctx, "tmp", user)
		if do(err); path != v.Path {
			t.Errorf("mounted at %s", path)
		}
	}
	is(false, "made")
	mount("a")
	mount("b")
	do(s.Unmount("tmp", "a"))
	is(true, "one left")
	do(s.Unmount("tmp", "b"))
	do(s.Unmount("tmp", "b"))
	is(false, "none left")

	mount("a")
	do(os.WriteFile(filepath.Join(v.Path, "f"), nil, 0o644))
	s, _ = open(t, dir) // the engine was killed; a lives
	mount("a")
	s.Settle()
	is(true, "a lives")
	if _, err := os.Stat(filepath.Join(v.Path, "f")); err != nil {
		t.Errorf("mounted a second time: %v", err)
	}
	s, _ = open(t, dir) // again; a has ended meanwhile
	s.Settle()
	is(false, "nobody lives")

	mount("a")
	do(s.Remove(ctx, "tmp", false)) // nobody holds it: what is mounted goes first
	is(false, "removed")
	if left := names(t, dir); left != "" {
		t.Errorf("left: %s", left)
	}
}

// What an administrator mounted in a volume is not deleted with it.
func TestForeignMountIsKept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a tmpfs")
	}
	ctx := context.Background()
	dir := t.TempDir()
	s, _ := open(t, dir)
	v := create(t, s, volume.Request{Name: "disk"})
	if err := mountAt(v.Path, map[string]string{"type": "tmpfs", "device": "tmpfs"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountAt(v.Path) })
	file := filepath.Join(v.Path, "precious")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "disk", true); !errdefs.IsConflict(err) {
		t.Errorf("removed: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// The kernel gets addresses in the place of names.
func TestRemote(t *testing.T) {
	for _, c := range []struct{ kind, device, o, wantDevice, wantO string }{
		{"nfs", ":/x", "", ":/x", ""},
		{"nfs", ":/x", "addr=10.0.0.1,rw", ":/x", "addr=10.0.0.1,rw"},
		{"nfs", ":/x", "rw,addr=localhost,soft", ":/x", "rw,addr=127.0.0.1,soft"},
		{"nfs4", ":/x", "addr=localhost", ":/x", "addr=127.0.0.1"},
		{"nfs", ":/x", "addr=::1", ":/x", "addr=::1"},
		{"cifs", "//localhost/share", "username=u,password=p", "//127.0.0.1/share", "username=u,password=p"},
		{"cifs", "//10.0.0.1/a b", "", "//10.0.0.1/a b", ""},
		{"cifs", "//localhost/share", "addr=127.0.0.2", "//localhost/share", "addr=127.0.0.2"},
		{"ext4", "/dev/sda1", "addr=localhost", "/dev/sda1", "addr=localhost"},
	} {
		device, o, err := remote(map[string]string{"type": c.kind, "device": c.device, "o": c.o})
		if device != c.wantDevice || o != c.wantO || err != nil {
			t.Errorf("%+v: %q %q, %v", c, device, o, err)
		}
	}
	if _, _, err := remote(map[string]string{"type": "nfs", "device": ":/x", "o": "addr=nosuch.invalid"}); err == nil || !strings.Contains(err.Error(), "error resolving passed in network volume address") {
		t.Errorf("a name nobody has: %v", err)
	}
}

// What a mount needs is not told when it fails.
func TestPasswordIsNotTold(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: tries to mount")
	}
	err := mountAt(t.TempDir(), map[string]string{"type": "nosuchfs", "device": "//10.0.0.1/x", "o": "username=ann,password=secret,ro"})
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "username=ann,password=********") {
		t.Errorf("told: %v", err)
	}
}

// Concurrent makers of one name get one volume; a remover never takes one that
// somebody has just got.
func TestRace(t *testing.T) {
	ctx := context.Background()
	s, _ := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		user := string(rune('a' + i))
		wg.Go(func() {
			for range 20 {
				v, err := s.Acquire(ctx, volume.Request{Name: "shared"}, user)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(v.Path); err != nil {
					t.Errorf("acquired, and gone: %v", err)
				}
				s.Release("shared", user)
				if err := s.Remove(ctx, "shared", true); err != nil && !errdefs.IsConflict(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
