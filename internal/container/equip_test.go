package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// imageWith is the tree of an image; a name that ends in a slash is a directory, a
// content that begins with "->" a link.
func imageWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(text, "->")
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(text), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestEquip: a container has its working directory and what the image has in its volumes
// as soon as it is made, and its root is mounted only when there is something to do.
func TestEquip(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	full := map[string]string{"data/f": "one", "data/sub/g": "two", "etc/passwd": "root", "app/": "", "link": "->/data", "plink": "->/etc/passwd", "dangling": "->/../nowhere"}
	volume := func(name, dst string) mount.Mount {
		return mount.Mount{Type: mount.TypeVolume, Source: name, Target: dst}
	}
	for _, c := range []struct {
		name   string
		change func(*Create)
		before map[string]string // in the volume v
		v      []string          // what is in it then
		filled bool
		mounts int
		made   string // in the root
		err    string
	}{
		{name: "nothing asked", change: func(*Create) {}},
		{name: "a working directory of the image", change: func(c *Create) { c.Config.WorkingDir = "/app" }},
		{name: "another", change: func(c *Create) { c.Config.WorkingDir = "/app/x/y" }, mounts: 1, made: "app/x/y"},
		{name: "where a link leads", change: func(c *Create) { c.Config.WorkingDir = "/dangling/x" }, mounts: 1, made: "nowhere/x"},
		{name: "a file", change: func(c *Create) { c.Config.WorkingDir = "/etc/passwd" }, err: "Cannot mkdir: /etc/passwd is not a directory"},
		{name: "below a file", change: func(c *Create) { c.Config.WorkingDir = "/etc/passwd/x" }, mounts: 1, err: "making the working directory: "},
		{name: "a volume", change: func(c *Create) { c.HostConfig.Mounts = []mount.Mount{volume("v", "/data")} }, mounts: 1, v: []string{"f", "sub"}, filled: true},
		{name: "through a link", change: func(c *Create) { c.HostConfig.Mounts = []mount.Mount{volume("v", "/link")} }, mounts: 1, v: []string{"f", "sub"}, filled: true},
		{name: "through one, where it is not empty", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/link"} }, before: map[string]string{"own": ""}, v: []string{"own"}, filled: true},
		{name: "half filled", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/data"} }, before: map[string]string{".escale-fill/f": ""}, mounts: 1, v: []string{"f", "sub"}, filled: true},
		{name: "whole, but not in its place", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/data"} }, before: map[string]string{".escale-fill.whole/f": ""}, v: []string{"f"}, filled: true},
		{name: "nothing in its place", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/none/x"} }, filled: true},
		{name: "as it is", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/data:nocopy"} }},
		{name: "both", change: func(c *Create) { c.HostConfig.Binds = []string{"v:/data"}; c.Config.WorkingDir = "/data/w" }, mounts: 1, made: "data/w", v: []string{"f", "sub", "w"}, filled: true},
		{name: "without a name", change: func(c *Create) { c.Config.Volumes = map[string]struct{}{"/data": {}} }, mounts: 1, filled: true},
		{name: "over a file", change: func(c *Create) { c.Config.Volumes = map[string]struct{}{"/etc/passwd": {}} }, err: "cannot mount volume over existing file, file exists /etc/passwd"},
		{name: "over a link to a file", change: func(c *Create) { c.Config.Volumes = map[string]struct{}{"/plink": {}} }, mounts: 1, err: "cannot mount volume over existing file, file exists /plink"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, dir := newFakeEngine(), t.TempDir()
			root := imageWith(t, full)
			f.layers, f.mountable = []string{root}, true
			m := f.manager(t, dir)
			defer m.Close()
			for name, text := range c.before {
				path := filepath.Join(dir, "volumes", "v", name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			asked := Create{Config: &container.Config{Image: "debian"}, HostConfig: &container.HostConfig{}}
			c.change(&asked)
			made, err := m.Create(t.Context(), asked)
			if f.mounts != c.mounts || len(f.mounted) != 0 {
				t.Errorf("%d mounts, %d left; want %d", f.mounts, len(f.mounted), c.mounts)
			}
			if left, _ := os.ReadDir(filepath.Join(dir, "run")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if c.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.err) {
					t.Errorf("%v, want %s", err, c.err)
				}
				if len(m.List()) != 0 || len(f.volumes) != 0 || len(f.prepared) != 0 {
					t.Errorf("left behind: %v, %v, %v", m.List(), f.volumes, f.prepared)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v, err := m.Get(string(made.ID))
			if err != nil || (len(v.Filled) == 1) != c.filled {
				t.Errorf("filled: %v, want %v; %v", v.Filled, c.filled, err)
			}
			if c.made != "" {
				if info, err := os.Stat(filepath.Join(root, c.made)); err != nil || !info.IsDir() {
					t.Errorf("%s: %v", c.made, err)
				}
			}
			for _, p := range v.Mounts {
				want := c.v
				if p.Name != "v" {
					want = []string{"f", "sub"}
				}
				got := names(p.Source)
				if slices.Sort(got); !slices.Equal(got, want) {
					t.Errorf("%s has %v, want %v", p.Destination, got, want)
				}
			}
		})
	}
}

// TestEquippedOnce: what somebody took out of a volume since a container was made does
// not come back when it starts; the record of an older engine has it filled then.
func TestEquippedOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	for _, older := range []bool{false, true} {
		f, dir := newFakeEngine(), t.TempDir()
		f.layers, f.mountable = []string{imageWith(t, map[string]string{"data/f": "one"})}, true
		m := f.manager(t, dir)
		made, err := m.Create(t.Context(), Create{Config: &container.Config{Image: "debian"}, HostConfig: &container.HostConfig{Binds: []string{"v:/data"}}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "volumes", "v", "f")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if older {
			e, err := m.store.find(string(made.ID))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.update(e, true, func(rec *Record) error { rec.Filled = nil; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		m.Close()
		m = f.manager(t, dir) // another engine
		if err := m.Start(t.Context(), string(made.ID)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != older {
			t.Errorf("an older record %v: %v", older, err)
		}
		if err := m.Remove(t.Context(), string(made.ID), Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		m.Close()
	}
}
