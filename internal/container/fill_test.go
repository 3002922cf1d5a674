package container

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// TestFill: an empty volume gets what the image has, once; a copy that was cut off is
// begun anew or finished, whoever comes next, and what others wrote stays.
func TestFill(t *testing.T) {
	image := t.TempDir()
	for name, text := range map[string]string{"a": "one", "sub/b": "two", ".hidden": "three"} {
		path := filepath.Join(image, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(image, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	all := []string{".hidden", "a", "sub"}
	for _, c := range []struct {
		name   string
		before map[string]string
		first  bool
		src    string
		want   []string
		a      string // content of "a" then
	}{
		{name: "empty, first start", first: true, want: all, a: "one"},
		{name: "empty, later start"},
		{name: "not empty", before: map[string]string{"own": "x"}, first: true, want: []string{"own"}},
		{name: "cut off while it was copied", before: map[string]string{".escale-fill/a": "o"}, want: all, a: "one"},
		{name: "cut off, and another wrote", before: map[string]string{".escale-fill/a": "o", "own": "x"}, want: []string{"own"}},
		{name: "cut off while it was moved", before: map[string]string{".escale-fill.whole/a": "one", "sub/b": "two"}, want: []string{"a", "sub"}, a: "one"},
		{name: "moved, and another wrote", before: map[string]string{".escale-fill.whole/a": "one", "a": "own"}, first: true, want: []string{"a"}, a: "own"},
		{name: "nothing there", first: true, src: "/nosuch"},
		{name: "a file there", first: true, src: filepath.Join(image, "a")},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.before {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			src := c.src
			if src == "" {
				src = image
			}
			if err := fill(dir, func() (string, error) { return src, nil }, c.first); err != nil {
				t.Fatal(err)
			}
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range list {
				got = append(got, d.Name())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("there is %v, want %v", got, c.want)
			}
			if c.a != "" {
				if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != c.a {
					t.Errorf("a has %q, %v, want %q", b, err, c.a)
				}
			}
			if slices.Equal(c.want, all) {
				if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSticky == 0 {
					t.Errorf("mode %v, %v", info.Mode(), err)
				}
				if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode().Perm() != 0o640 {
					t.Errorf("mode of a file %v, %v", info.Mode(), err)
				}
			}
		})
	}
}

// TestFillTogether: containers that start at once do not fill one volume together.
func TestFillTogether(t *testing.T) {
	image, dir := t.TempDir(), t.TempDir()
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(image, string(rune('A'+i))), make([]byte, 1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var f filling
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			defer f.lock("v")()
			if err := fill(dir, func() (string, error) { return image, nil }, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := os.ReadDir(dir); err != nil || len(list) != 50 {
		t.Errorf("%d entries, %v", len(list), err)
	}
}
