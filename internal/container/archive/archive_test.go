package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// tree makes a root with a few files and links, and opens it.
func tree(t testing.TB) (*os.File, string) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"etc/sub", "usr/bin", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/:\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/sub/f"), []byte("f"), 0o600))
	for name, target := range map[string]string{
		"bin": "usr/bin", "abs": "/etc/sub", "out": "../../../../../../..", "etc/host": "/../../../../etc/passwd",
		"loop": "loop", "dangling": "/nosuch/x", "chain": "abs/f",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	return openDir(t, dir), dir
}

func openDir(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStat(t *testing.T) {
	root, _ := tree(t)
	for _, c := range []struct {
		path, name, target string
		dir                bool
		err                error
	}{
		{path: "/etc", name: "etc", dir: true},
		{path: "etc", name: "etc", dir: true},
		{path: "/etc/", name: "etc", dir: true},
		{path: "/etc/.", name: ".", dir: true},
		{path: "/", name: "/", dir: true},
		{path: "/etc/sub/..", name: "etc", dir: true},
		{path: "/../../etc/passwd", name: "passwd"},
		{path: "/abs", name: "abs", target: "/etc/sub"},
		{path: "/abs/", name: "abs", dir: true},
		{path: "/abs/f", name: "f"},
		{path: "/out", name: "out", target: "/"},
		{path: "/etc/host", name: "host", target: "/etc/passwd"},
		{path: "/chain", name: "chain", target: "/etc/sub/f"},
		{path: "/dangling", name: "dangling", target: "/nosuch/x"},
		{path: "/loop", name: "loop"},
		{path: "/loop/x", err: unix.ELOOP},
		{path: "/nosuch", err: fs.ErrNotExist},
		{path: "/etc/passwd/", err: unix.ENOTDIR},
		{path: "/etc/passwd/x", err: unix.ENOTDIR},
		{path: "/out/etc/passwd", name: "passwd"},
	} {
		st, err := Stat(root, c.path)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want %v", c.path, err, c.err)
			continue
		}
		if c.err == nil && (st.Name != c.name || st.LinkTarget != c.target || st.Mode.IsDir() != c.dir) {
			t.Errorf("%s: %+v", c.path, st)
		}
	}
}

// names reads an archive's names, with the content of files and targets of links.
func names(t testing.TB, b []byte) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		s := h.Name
		if h.Linkname != "" {
			s += "->" + h.Linkname
		}
		if h.Typeflag == tar.TypeReg {
			c, err := io.ReadAll(tr)
			must(t, err)
			s += "=" + string(c)
		}
		out = append(out, s)
	}
}

func TestRead(t *testing.T) {
	root, dir := tree(t)
	must(t, os.Link(filepath.Join(dir, "etc/sub/f"), filepath.Join(dir, "etc/sub/g")))
	must(t, unix.Mknod(filepath.Join(dir, "etc/sub/sock"), unix.S_IFSOCK|0o600, 0))
	must(t, unix.Mkfifo(filepath.Join(dir, "etc/sub/pipe"), 0o600))
	for path, want := range map[string]string{
		"/etc/sub":    "sub/ sub/f=f sub/g->sub/f sub/pipe",
		"/etc/sub/":   "sub/ sub/f=f sub/g->sub/f sub/pipe",
		"/etc/sub/.":  "./ ./f=f ./g->./f ./pipe",
		"/abs/":       "abs/ abs/f=f abs/g->abs/f abs/pipe",
		"/abs":        "abs->/etc/sub",
		"/etc/host":   "host->/../../../../etc/passwd",
		"/abs/f":      "f=f",
		"/etc/passwd": "passwd=root:x:0:0::/:\n",
	} {
		var b bytes.Buffer
		must(t, Read(t.Context(), root, path, func(container.PathStat) (io.Writer, error) { return &b, nil }))
		if got := strings.Join(names(t, b.Bytes()), " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	var b bytes.Buffer
	must(t, Read(t.Context(), root, "/", func(container.PathStat) (io.Writer, error) { return &b, nil }))
	if got := names(t, b.Bytes()); got[0] != "/" || !slices.Contains(got, "/etc/sub/f=f") {
		t.Errorf("/: %q", got)
	}
	b.Reset()
	must(t, Export(t.Context(), root, &b))
	if got := names(t, b.Bytes()); got[0] != "abs->/etc/sub" || !slices.Contains(got, "etc/sub/f=f") {
		t.Errorf("export: %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Export(ctx, root, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("export that nobody wants: %v", err)
	}
}

// pack1 makes an archive of headers; a regular file's content is its name.
func pack1(t testing.TB, hdrs ...*tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range hdrs {
		h.Uid, h.Gid, h.ModTime = os.Getuid(), os.Getgid(), time.Unix(1e9, 0)
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		must(t, tw.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(tw, h.Name)
			must(t, err)
		}
	}
	must(t, tw.Close())
	return &b
}

func file(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} }

func TestWrite(t *testing.T) {
	dirHdr := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name} }
	for _, c := range []struct {
		what, dest string
		in         []*tar.Header
		strict     bool
		path, want string // what is at path then
		err        error
		words      string
	}{
		{what: "a file", dest: "/tmp", in: []*tar.Header{file("x")}, path: "tmp/x", want: "x"},
		{what: "through a link", dest: "/abs", in: []*tar.Header{file("x")}, path: "etc/sub/x", want: "x"},
		{what: "through a link that leads out", dest: "/out/tmp", in: []*tar.Header{file("x")}, path: "tmp/x", want: "x"},
		{what: "an entry through a link", dest: "/", in: []*tar.Header{file("abs/x")}, path: "etc/sub/x", want: "abs/x"},
		{what: "missing directories", dest: "/tmp", in: []*tar.Header{file("a/b/x")}, path: "tmp/a/b/x", want: "a/b/x"},
		{what: "a file over a link", dest: "/", in: []*tar.Header{file("abs")}, path: "abs", want: "abs"},
		{what: "a file over a directory", dest: "/", in: []*tar.Header{file("etc")}, path: "etc", want: "etc"},
		{what: "a file over a directory, refused", dest: "/", in: []*tar.Header{file("etc")}, strict: true, err: errdefs.ErrInvalidArgument, words: "cannot overwrite directory"},
		{what: "a directory over a file, refused", dest: "/etc", in: []*tar.Header{dirHdr("passwd")}, strict: true, err: errdefs.ErrInvalidArgument, words: "cannot overwrite non-directory"},
		{what: "merged", dest: "/", in: []*tar.Header{dirHdr("etc"), file("etc/new")}, strict: true, path: "etc/sub/f", want: "f"},
		{what: "dot", dest: "/tmp", in: []*tar.Header{dirHdr("./"), file("./x")}, path: "tmp/x", want: "./x"},
		{what: "no directory", dest: "/etc/passwd", in: []*tar.Header{file("x")}, err: errdefs.ErrInvalidArgument, words: "extraction point is not a directory"},
		{what: "nowhere", dest: "/nosuch", in: []*tar.Header{file("x")}, err: fs.ErrNotExist},
		{what: "out of the archive", dest: "/etc", in: []*tar.Header{file("../x")}, err: errdefs.ErrInvalidArgument, words: "leads out"},
		{what: "a link out of the archive", dest: "/tmp", in: []*tar.Header{{Typeflag: tar.TypeLink, Name: "x", Linkname: "../etc/passwd"}}, err: errdefs.ErrInvalidArgument, words: "leads out"},
		{what: "hard link", dest: "/tmp", in: []*tar.Header{file("x"), {Typeflag: tar.TypeLink, Name: "y", Linkname: "x"}}, path: "tmp/y", want: "x"},
		{what: "written through a link of the archive", dest: "/tmp", in: []*tar.Header{{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../../../../../../../etc"}, file("l/y")}, path: "etc/y", want: "l/y"},
	} {
		t.Run(c.what, func(t *testing.T) {
			root, dir := tree(t)
			err := Write(t.Context(), root, c.dest, pack1(t, c.in...), WriteOptions{NoOverwriteDirNonDir: c.strict})
			if !errors.Is(err, c.err) || (err != nil && !strings.Contains(err.Error(), c.words)) {
				t.Fatalf("error %v, want %v %q", err, c.err, c.words)
			}
			if c.path == "" {
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, c.path)); err != nil || string(b) != c.want {
				t.Errorf("%s: %q, %v", c.path, b, err)
			}
		})
	}
}

// What is cut off leaves no half a file.
func TestWriteTruncated(t *testing.T) {
	root, dir := tree(t)
	b := pack1(t, file("whole"), file("half")).Bytes()
	err := Write(t.Context(), root, "/tmp", bytes.NewReader(b[:512*3+2]), WriteOptions{})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
	if got := entries(t, filepath.Join(dir, "tmp")); got != "whole" {
		t.Errorf("left: %q", got)
	}
}

// Who sends an archive and is gone has not sent a bad one.
func TestWriteFromNobody(t *testing.T) {
	root, _ := tree(t)
	b := pack1(t, file("whole"), file("half")).Bytes()
	gone := fmt.Errorf("node n2: %w: %w", io.ErrUnexpectedEOF, errdefs.ErrUnavailable)
	err := Write(t.Context(), root, "/tmp", io.MultiReader(bytes.NewReader(b[:512*3+2]), iotest.ErrReader(gone)), WriteOptions{})
	if !errdefs.IsUnavailable(err) || errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
}

func entries(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// What was read can be put elsewhere and is the same.
func TestRoundTrip(t *testing.T) {
	root, dir := tree(t)
	must(t, os.Chmod(filepath.Join(dir, "etc/sub/f"), 0o755|os.ModeSetuid))
	at := time.Unix(1e9, 0)
	must(t, os.Chtimes(filepath.Join(dir, "etc/sub"), at, at))
	var b bytes.Buffer
	must(t, Export(t.Context(), root, &b))
	first := b.String()
	copied := openDir(t, t.TempDir())
	must(t, Write(t.Context(), copied, "/", &b, WriteOptions{}))
	var again bytes.Buffer
	must(t, Export(t.Context(), copied, &again))
	if again.String() != first {
		t.Errorf("%q, want %q", names(t, again.Bytes()), names(t, []byte(first)))
	}
}

// A directory that is swapped for a link to the host, and back, all the time:
// nothing of the host is read, nothing is written there.
func TestSwappedLinks(t *testing.T) {
	root, dir := tree(t)
	host := t.TempDir()
	must(t, os.WriteFile(filepath.Join(host, "secret"), []byte("SECRET"), 0o600))
	real, evil := filepath.Join(dir, "d"), filepath.Join(dir, "evil")
	must(t, os.Mkdir(real, 0o755))
	must(t, os.WriteFile(filepath.Join(real, "secret"), []byte("public"), 0o600))
	up := strings.Repeat("../", 40)
	must(t, os.Symlink(filepath.Join(up, host), evil))
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				done <- n
				return
			default:
				if unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, evil, unix.RENAME_EXCHANGE) == nil {
					n++
				}
			}
		}
	}()
	content := pack1(t, file("d/put"), file("d/sub/put"), &tar.Header{Typeflag: tar.TypeDir, Name: "d/dir"}).Bytes()
	wrote := 0
	// A second; on a slow machine until something got through.
	for begun := time.Now(); time.Since(begun) < time.Second || wrote == 0 && time.Since(begun) < time.Minute; {
		for _, path := range []string{"/d", "/d/", "/d/secret", "/"} {
			var b bytes.Buffer
			// A name that is not there for a moment is no failure.
			if Read(t.Context(), root, path, func(container.PathStat) (io.Writer, error) { return &b, nil }) == nil && bytes.Contains(b.Bytes(), []byte("SECRET")) {
				t.Fatalf("%s: read from the host", path)
			}
		}
		if Write(t.Context(), root, "/", bytes.NewReader(content), WriteOptions{}) == nil {
			wrote++
		}
		_ = Write(t.Context(), root, "/d", bytes.NewReader(content), WriteOptions{})
	}
	close(stop)
	if n := <-done; n < 100 || wrote == 0 {
		t.Errorf("%d swaps, %d writes: the attack was none", n, wrote)
	}
	if got := entries(t, host); got != "secret" {
		t.Errorf("on the host: %q", got)
	}
}

func FuzzWrite(f *testing.F) {
	f.Add(pack1(f, file("x"), &tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../../.."}, file("l/y")).Bytes())
	f.Add(pack1(f, file("a"), &tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}, &tar.Header{Typeflag: tar.TypeFifo, Name: "p"}).Bytes())
	f.Add([]byte("no archive"))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(outer, "root/dest"), 0o755))
		must(t, os.WriteFile(filepath.Join(outer, "keep"), []byte("keep"), 0o600))
		root := openDir(t, filepath.Join(outer, "root"))
		_ = Write(t.Context(), root, "/dest", bytes.NewReader(b), WriteOptions{Owner: &Owner{os.Getuid(), os.Getgid()}})
		if got := entries(t, outer); got != "keep root" {
			t.Fatalf("beside the root: %q", got)
		}
		if c, err := os.ReadFile(filepath.Join(outer, "keep")); err != nil || string(c) != "keep" {
			t.Fatalf("beside the root: %q, %v", c, err)
		}
	})
}
