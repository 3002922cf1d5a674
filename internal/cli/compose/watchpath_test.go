package compose

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/fsnotify/fsnotify"
)

// What a rule watches may come later, in a step or in several, as a file or a directory, and go
// and come again.
func TestWatchPathComes(t *testing.T) {
	dir := t.TempDir()
	at := func(path string) string { return filepath.Join(dir, path) }
	p := &types.Project{Services: types.Services{"a": {Name: "a", Develop: &types.DevelopConfig{Watch: []types.Trigger{
		{Action: types.WatchActionSync, Path: at("x/y/src"), Target: "/src", Ignore: []string{"*.skip"}},
		{Action: types.WatchActionSync, Path: at("x/conf"), Target: "/conf"},
	}}}}}
	rules, err := rulesOf(p, []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, r := range rules {
		if err := r.begin(w); err != nil {
			t.Fatal(err)
		}
	}
	see := func(what string, want ...string) {
		t.Helper()
		// All that happened before this file was made is told of before it.
		mark := at("mark of " + what)
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		changed, late := map[string]bool{}, time.After(10*time.Second)
		for seen := false; !seen; {
			select {
			case e := <-w.Events:
				seen = e.Name == mark
				notice(w, rules, e, changed)
			case err := <-w.Errors:
				t.Fatal(err)
			case <-late:
				t.Fatalf("%s: nothing tells of %s", what, mark)
			}
		}
		var got []string
		for _, path := range slices.Sorted(maps.Keys(changed)) {
			got = append(got, strings.TrimPrefix(path, dir+"/"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: changed %q, want %q", what, got, want)
		}
	}
	write := func(paths ...string) {
		t.Helper()
		for _, path := range paths {
			if err := os.MkdirAll(filepath.Dir(at(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at(path), []byte("text"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("other", "x/other", "x/y/src/d/f", "x/y/src/g.skip")
	see("a directory with what is in it", "x/y/src/d/f")
	write("x/y/src/d/g")
	see("a file in it", "x/y/src/d/g")
	write("x/conf")
	see("a file", "x/conf")
	if err := os.Remove(at("x/conf")); err != nil {
		t.Fatal(err)
	}
	see("without it", "x/conf")
	if err := os.RemoveAll(at("x/y/src")); err != nil {
		t.Fatal(err)
	}
	see("without the directory", "x/y/src/d", "x/y/src/d/f", "x/y/src/d/g")
	write("x/y/src/again")
	see("the directory again", "x/y/src/again")
	if err := os.Rename(at("x"), at("z")); err != nil {
		t.Fatal(err)
	}
	see("moved away")
	write("x/conf", "x/y/src/more")
	see("all of it again", "x/conf", "x/y/src/more")
	if err := os.RemoveAll(at("x")); err != nil {
		t.Fatal(err)
	}
	see("without any", "x/conf", "x/y/src/more")
	write("x/y/src/last")
	see("the last", "x/y/src/last")
}

// What is to be brought over first has to be there; and a path below a file cannot come.
func TestWatchPathRefused(t *testing.T) {
	r := &rule{trigger: types.Trigger{Path: filepath.Join(t.TempDir(), "none"), InitialSync: true}}
	if err := r.look(); err != nil || !r.absent {
		t.Fatal(err, r.absent)
	}
	if err := r.begin(nil); !os.IsNotExist(err) || !strings.Contains(err.Error(), "initial_sync") {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&rule{trigger: types.Trigger{Path: filepath.Join(file, "x")}}).look(); err == nil {
		t.Error("a path below a file")
	}
}
