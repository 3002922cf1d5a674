package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// entry of a tar made by a test.
type entry struct {
	name, link, data string
	kind             byte
	mode             int64
	uid              int
	pax              map[string]string
	major, minor     int64
}

var epoch = time.Unix(1_700_000_000, 123456789)

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o755
		}
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.data)),
			Uid: e.uid, Gid: e.uid, PAXRecords: e.pax, ModTime: epoch, Format: tar.FormatPAX, Devmajor: e.major, Devminor: e.minor}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets owners, devices and trusted attributes")
	}
}

func TestApply(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	data := makeTar(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o711, uid: 7},
		entry{name: "a/", kind: tar.TypeDir, mode: 0o2750, uid: 100000000},
		entry{name: "a/suid", data: "hello", mode: 0o4711, uid: 3},
		entry{name: "a/hard", kind: tar.TypeLink, link: "a/suid"},
		entry{name: "a/soft", kind: tar.TypeSymlink, link: "/etc/passwd"},
		entry{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3, mode: 0o666},
		entry{name: "pipe", kind: tar.TypeFifo, mode: 0o600},
		entry{name: "x", data: "cap", pax: map[string]string{
			"SCHILY.xattr.user.foo": "bar\x00baz", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		entry{name: "twice", data: "longer than before"},
		entry{name: "twice", data: "short"},
		entry{name: "was/dir", data: "gone"},
		entry{name: "was", data: "file"},
		entry{name: strings.Repeat("long/", 60) + "name", data: "pax"},
		entry{name: "a/.wh.hidden"},
		entry{name: "b/.wh..wh..opq"},
	)
	res, err := Apply(context.Background(), root, bytes.NewReader(data), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len("hello") + len("cap") + len("short") + len("file") + len("pax")); res.Size != want {
		t.Errorf("size %d, want %d", res.Size, want)
	}
	for name, want := range map[string]struct {
		mode uint32
		uid  uint32
	}{
		".": {unix.S_IFDIR | 0o711, 7}, "a": {unix.S_IFDIR | 0o2750, 100000000}, "a/suid": {unix.S_IFREG | 0o4711, 3},
		"a/hard": {unix.S_IFREG | 0o4711, 3}, "a/soft": {unix.S_IFLNK | 0o777, 0}, "dev/null": {unix.S_IFCHR | 0o666, 0},
		"pipe": {unix.S_IFIFO | 0o600, 0}, "was": {unix.S_IFREG | 0o755, 0}, "a/hidden": {unix.S_IFCHR, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if st.Mode != want.mode || st.Uid != want.uid {
			t.Errorf("%s: mode %o uid %d, want %o %d", name, st.Mode, st.Uid, want.mode, want.uid)
		}
		if name != "a/hidden" && name != "a/hard" && (st.Mtim.Sec != epoch.Unix() || st.Mtim.Nsec != int64(epoch.Nanosecond())) && name != "dev/null" {
			t.Errorf("%s: time %d.%d", name, st.Mtim.Sec, st.Mtim.Nsec)
		}
	}
	buf := make([]byte, 99)
	if n, err := unix.Lgetxattr(filepath.Join(root, "x"), "user.foo", buf); err != nil || string(buf[:n]) != "bar\x00baz" {
		t.Errorf("attribute: %q %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(root, "x"), "trusted.overlay.redirect", buf); err != unix.ENODATA {
		t.Errorf("overlayfs's own attribute was set: %v", err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(root, "b"), "trusted.overlay.opaque", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("opaque: %q %v", buf[:max(n, 0)], err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, strings.Repeat("long/", 60), "name")); string(b) != "pax" {
		t.Errorf("long name: %q", b)
	}
}

// TestEscape: whatever a tar says, what lies beside the root stays as it was.
func TestEscape(t *testing.T) {
	needRoot(t)
	for name, entries := range map[string][]entry{
		"dotdot":         {{name: "../../outside/new", data: "x"}},
		"absolute":       {{name: "/etc/escaped", data: "x"}},
		"symlink dir":    {{name: "l", kind: tar.TypeSymlink, link: "../outside"}, {name: "l/secret", data: "changed"}},
		"absolute link":  {{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/secret", data: "changed"}},
		"link to link":   {{name: "a", kind: tar.TypeSymlink, link: ".."}, {name: "b", kind: tar.TypeSymlink, link: "a/outside"}, {name: "b/secret", data: "changed"}},
		"over a link":    {{name: "f", kind: tar.TypeSymlink, link: "OUTSIDE/secret"}, {name: "f", data: "changed"}},
		"hard link":      {{name: "h", kind: tar.TypeLink, link: "../outside/secret"}, {name: "h", data: "changed"}},
		"hard via link":  {{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "h", kind: tar.TypeLink, link: "l/secret"}},
		"whiteout":       {{name: "../outside/.wh.secret"}},
		"whiteout up":    {{name: "d/.wh..."}, {name: "d/.wh...."}},
		"whiteout dot":   {{name: ".wh.."}, {name: "x/.wh..."}},
		"opaque link":    {{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/.wh..wh..opq"}},
		"swap":           {{name: "d/x", data: "1"}, {name: "d", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "d/secret", data: "changed"}},
		"mode of a link": {{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE/secret", mode: 0o777, uid: 5}},
		"dir over link":  {{name: "l", kind: tar.TypeSymlink, link: "OUTSIDE"}, {name: "l/", kind: tar.TypeDir, mode: 0o777, uid: 9}},
		"magic link":     {{name: "l", kind: tar.TypeSymlink, link: "/proc/self/root"}, {name: "l/tmp/x", data: "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			root, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
			for _, d := range []string{root, outside} {
				if err := os.Mkdir(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range entries {
				entries[i].link = strings.ReplaceAll(entries[i].link, "OUTSIDE", outside)
			}
			before := fingerprint(t, outside)
			_, err := Apply(context.Background(), root, bytes.NewReader(makeTar(t, entries...)), Options{})
			t.Logf("answer: %v", err)
			if after := fingerprint(t, outside); after != before {
				t.Errorf("outside changed:\n%s\nwas\n%s", after, before)
			}
			if list, _ := os.ReadDir(base); len(list) != 2 {
				t.Errorf("beside the root: %v", list)
			}
		})
	}
}

// fingerprint of a tree: names, modes, owners, link counts, times, contents.
func fingerprint(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		b.WriteString(strings.Join([]string{p, fi.Mode().String(), fi.ModTime().String()}, " "))
		b.WriteString(" " + string(rune('0'+st.Nlink)) + " " + string(rune('0'+st.Uid)))
		if fi.Mode().IsRegular() {
			c, _ := os.ReadFile(p)
			b.Write(c)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLimits(t *testing.T) {
	ctx := context.Background()
	big := makeTar(t, entry{name: "a", data: strings.Repeat("x", 5000)}, entry{name: "b", data: strings.Repeat("x", 5000)})
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(big), Options{Limits: Limits{Bytes: 9999}}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("bytes: %v", err)
	}
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(big), Options{Limits: Limits{Entries: 1}}); !errors.Is(err, unix.E2BIG) {
		t.Errorf("entries: %v", err)
	}
	full := errors.New("full")
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(big), Options{Limits: Limits{Space: func() error { return full }}}); err != full {
		t.Errorf("space: %v", err)
	}
	for _, n := range []int{1, 511, 530, 3000} {
		if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(big[:n]), Options{}); err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	noise := make([]byte, 4096)
	rand.Read(noise)
	if _, err := Apply(ctx, t.TempDir(), bytes.NewReader(noise), Options{}); err != tar.ErrHeader {
		t.Errorf("noise: %v", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Apply(done, t.TempDir(), bytes.NewReader(big), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSparse: GNU tar's sparse files become files with holes.
func TestSparse(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs the program tar")
	}
	for _, format := range []string{"gnu", "posix"} {
		src, root := t.TempDir(), t.TempDir()
		f, err := os.Create(filepath.Join(src, "f"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(64 << 20); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("end"), 64<<20-3); err != nil {
			t.Fatal(err)
		}
		f.Close()
		out, err := exec.Command("tar", "-S", "--format="+format, "-C", src, "-cf", "-", "f").Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(context.Background(), root, bytes.NewReader(out), Options{}); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, "f"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Size != 64<<20 || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: size %d, on disk %d", format, st.Size, st.Blocks*512)
		}
		if b, _ := os.ReadFile(filepath.Join(root, "f")); !bytes.HasSuffix(b, []byte("\x00end")) {
			t.Errorf("%s: contents differ", format)
		}
	}
}

func TestInherit(t *testing.T) {
	needRoot(t)
	lower, upper := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(lower, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(filepath.Join(lower, "var/lib"), 42, 43), os.Chmod(filepath.Join(lower, "var/lib"), 0o770|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	res, err := Apply(context.Background(), upper, bytes.NewReader(makeTar(t, entry{name: "var/lib/x", data: "1"})), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Implied) != 2 {
		t.Fatalf("implied: %v", res.Implied)
	}
	if err := Inherit(upper, res.Implied, []string{t.TempDir(), lower}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(upper, "var/lib"), &st); err != nil || st.Uid != 42 || st.Gid != 43 || st.Mode&0o7777 != 0o1770 {
		t.Errorf("%v: %d:%d %o", err, st.Uid, st.Gid, st.Mode)
	}
}

func TestDecompress(t *testing.T) {
	plainText := bytes.Repeat([]byte("some text "), 10000)
	packed := map[Compression][]byte{None: plainText}
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	zw.Write(plainText)
	zw.Close()
	packed[Gzip] = append([]byte(nil), b.Bytes()...)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed[Zstd] = enc.EncodeAll(plainText, nil)
	for c, prog := range map[Compression]string{Bzip2: "bzip2", Xz: "xz"} {
		if _, err := exec.LookPath(prog); err != nil {
			t.Logf("needs the program %s", prog)
			continue
		}
		cmd := exec.Command(prog, "-c")
		cmd.Stdin = bytes.NewReader(plainText)
		if packed[c], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for c, data := range packed {
		r, got, err := Decompress(context.Background(), bytes.NewReader(data), 1<<20)
		if err != nil || got != c {
			t.Fatalf("%q: %q %v", c, got, err)
		}
		out, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(out, plainText) {
			t.Errorf("%q: %d bytes, %v", c, len(out), err)
		}
		r.Close()
		if r, _, err = Decompress(context.Background(), bytes.NewReader(data), 5000); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%q: bomb: %v", c, err)
		}
		r.Close()
		if c == None {
			continue
		}
		if r, _, err = Decompress(context.Background(), bytes.NewReader(data[:len(data)-6]), 1<<20); err == nil {
			if _, err = io.ReadAll(r); err == nil {
				t.Errorf("%q: truncated stream is taken", c)
			}
			r.Close()
		}
	}
}

func TestBroadcast(t *testing.T) {
	data := make([]byte, 10<<20)
	rand.Read(data)
	var one, two bytes.Buffer
	err := Broadcast(context.Background(), bytes.NewReader(data),
		func(r io.Reader) error { _, err := io.Copy(&one, r); return err },
		func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 10); return err }, // stops early
		func(r io.Reader) error {
			_, err := io.Copy(struct{ io.Writer }{&two}, struct{ io.Reader }{r})
			return err
		})
	if err != nil || !bytes.Equal(one.Bytes(), data) || !bytes.Equal(two.Bytes(), data) {
		t.Errorf("%v: %d, %d of %d bytes", err, one.Len(), two.Len(), len(data))
	}
	bad := errors.New("bad")
	all := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	if err := Broadcast(context.Background(), bytes.NewReader(data), all, func(io.Reader) error { return bad }); err != bad {
		t.Errorf("error of a reader: %v", err)
	}
	if err := Broadcast(context.Background(), io.MultiReader(bytes.NewReader(data[:99]), errReader{io.ErrUnexpectedEOF}), all); err != io.ErrUnexpectedEOF {
		t.Errorf("error of the stream: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Broadcast(ctx, bytes.NewReader(data), all); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// FuzzApply unpacks foreign bytes; what lies beside the root may not change.
func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, entry{name: "../x", data: "1"}, entry{name: "l", kind: tar.TypeSymlink, link: "../outside"}, entry{name: "l/secret", data: "2"}))
	f.Add(makeTar(f, entry{name: "h", kind: tar.TypeLink, link: "../outside/secret"}, entry{name: "d/.wh..wh..opq"}, entry{name: ".wh.x"}))
	f.Add(makeTar(f, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d", kind: tar.TypeFifo}, entry{name: "n", kind: tar.TypeChar, major: 1, minor: 3}))
	f.Add(makeTar(f, entry{name: "x", data: "1", pax: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		root, outside := filepath.Join(base, "root"), filepath.Join(base, "outside")
		for _, d := range []string{root, outside} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := fingerprint(t, outside)
		_, _ = Apply(context.Background(), root, bytes.NewReader(data), Options{Limits: Limits{Bytes: 1 << 20, Entries: 1000}})
		if after := fingerprint(t, outside); after != before {
			t.Fatalf("outside changed:\n%s\nwas\n%s", after, before)
		}
		if list, _ := os.ReadDir(base); len(list) != 2 {
			t.Fatalf("beside the root: %v", list)
		}
	})
}
