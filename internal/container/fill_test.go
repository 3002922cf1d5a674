package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSyncTree: what is in a directory is on the disk, few files or many, whatever lies
// between them.
func TestSyncTree(t *testing.T) {
	for _, n := range []int{1, 3, 2 * syncedEach} {
		dir := filepath.Join(t.TempDir(), "dir")
		var files []string
		for i := range n {
			sub := filepath.Join(dir, strconv.Itoa(i%2))
			if err := os.MkdirAll(sub, 0o700); err != nil {
				t.Fatal(err)
			}
			files = append(files, filepath.Join(sub, strconv.Itoa(i)))
			if err := os.WriteFile(files[i], make([]byte, 100<<10), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/nosuch", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if dirty(t, files[n-1]) == 0 {
			t.Skip("this file system does not tell what is on the disk, or was quick")
		}
		if err := syncTree(dir); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if left := dirty(t, f); left != 0 {
				t.Errorf("%d files: %d pages of %s are not on the disk", n, left, f)
			}
		}
	}
}

// dirty counts the pages of a file that are to be written to the disk yet.
func dirty(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("needs root: files that nobody may read")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &s, 0); err != nil {
		t.Skipf("the kernel does not tell what is on the disk: %v", err)
	}
	return s.Dirty + s.Writeback
}

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
