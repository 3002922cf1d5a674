package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// hard makes a tree of all that a volume may hold.
func hard(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and devices")
	}
	script := `cd "$1"; umask 022; mkdir -p d/e; echo text >d/f; ln d/f d/e/hard; ln -s ../f d/e/soft; ln -s /nowhere/at/all broken
mkfifo pipe; mknod null c 1 3; mknod blk b 7 99; truncate -s 10m holes; printf begin | dd of=holes conv=notrunc 2>/dev/null
printf middle | dd of=holes bs=1 seek=5000000 conv=notrunc 2>/dev/null; truncate -s 3m allhole
head -c 300000 /dev/zero >zeros; head -c 70000 /dev/urandom >random; : >empty
chown 1000:2000 d/f; chown -h 12:34 broken; chmod 6755 random; chmod 1777 d; chmod 000 empty; chown 3000000:4000000 holes
n=$(printf 'x%.0s' $(seq 120)); mkdir "$n"; echo long >"$n/$n"; echo name >"sp ace
line"; touch -d '2001-02-03 04:05:06.789012345' d/f random holes broken; touch -d '1999-01-01 00:00:00.5' d; chmod 750 .; chown 5:6 .; touch -d '1998-07-06 05:04:03.2' .`
	if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for path, attr := range map[string]string{"/random": "user.mark", "/holes": "user.mark", "/d": "trusted.mark"} {
		if err := unix.Setxattr(dir+path, attr, []byte("v\x00\n="), 0); err != nil && err != unix.ENOTSUP {
			t.Fatal(err)
		}
	}
}

// describeTree tells all that a copy of a tree must have in common with it.
func describeTree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%q %o %d:%d %d.%d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := 0
			for i, c := range b {
				sum = sum*31 + int(c) + i
			}
			name, again := first[st.Ino]
			if !again {
				first[st.Ino] = rel
			}
			fmt.Fprintf(&out, " %d bytes %x as %q sparse %v", len(b), sum, name, st.Size-st.Blocks*512 > 1<<20)
		case unix.S_IFLNK:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&out, " -> %s", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&out, " %d", st.Rdev)
		}
		for _, attr := range []string{"user.mark", "trusted.mark"} {
			b := make([]byte, 64)
			if n, err := unix.Lgetxattr(path, attr, b); err == nil {
				fmt.Fprintf(&out, " %s=%q", attr, b[:n])
			}
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func heldDir(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func backup(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Backup(t.Context(), heldDir(t, dir), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What a backup holds is restored as it was, by us and, but for attributes, by tar.
func TestBackupAndRestore(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	hard(t, src)
	want := describeTree(t, src)
	b := backup(t, src)
	if len(b) > 2<<20 {
		t.Errorf("the holes are in the archive: %d bytes", len(b))
	}
	os.MkdirAll(dst+"/old/deep", 0o700)
	os.WriteFile(dst+"/d", []byte("in the way"), 0o600)
	s, err := Stage(t.Context(), heldDir(t, dst), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dst + "/old/deep"); err != nil {
		t.Errorf("changed before the commit: %v", err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := describeTree(t, dst); got != want {
		t.Errorf("restored:\n%swant:\n%s", got, want)
	}
	if got := backup(t, dst); !bytes.Equal(got, b) {
		t.Error("a backup of what was restored is another")
	}
	byTar := t.TempDir()
	cmd := exec.Command("tar", "-xpf", "-", "-C", byTar, "--numeric-owner", "--xattrs", "--xattrs-include=*")
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if got := describeTree(t, byTar); got != want {
		t.Errorf("by tar:\n%swant:\n%s", got, want)
	}
	// and what tar makes is taken
	fromTar, err := exec.Command("tar", "-cSf", "-", "-C", src, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := heldDir(t, t.TempDir())
	if s, err = Stage(t.Context(), root, bytes.NewReader(fromTar)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holes", "allhole", "zeros", "random"} {
		a, _ := os.ReadFile(src + "/" + name)
		if b, err := os.ReadFile(root.Name() + "/" + name); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s of tar's archive: %v", name, err)
		}
	}
}

// A bad archive leaves the tree as it was, wherever it is bad.
func TestStageRefuses(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	hard(t, src)
	whole := backup(t, src)
	os.MkdirAll(dst+"/mine/deep", 0o700)
	root := heldDir(t, dst)
	check := func(what string, b []byte) {
		t.Helper()
		s, err := Stage(t.Context(), root, bytes.NewReader(b))
		if err == nil {
			s.Abort()
			t.Errorf("%s: taken", what)
		} else if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: kind of %v", what, err)
		}
		if got := namesIn(t, dst); got != "mine" {
			t.Errorf("%s: left %q", what, got)
		}
	}
	for n := 0; n < len(whole)-1024; n += 512 * (1 + n/4096) { // at the edges of entries, too
		check(fmt.Sprintf("cut off at %d", n), whole[:n])
	}
	check("cut off within", whole[:len(whole)/2+77])
	check("no archive", []byte(strings.Repeat("no archive ", 200)))
	check("nothing", nil)
	for _, name := range []string{"../out", "a/../../out", stagingName, stagingIn + "/new/x"} {
		check(name, archiveOf(t, &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Stage(ctx, root, bytes.NewReader(whole)); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dst) + "/out"); err == nil {
		t.Error("a file outside was made")
	}
}

func namesIn(t *testing.T, dir string) string {
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

func archiveOf(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return b.Bytes()
}

// Links in an archive lead nowhere outside, whatever is put through them.
func TestStageStaysInside(t *testing.T) {
	outside, dst := t.TempDir(), t.TempDir()
	b := archiveOf(t,
		&tar.Header{Name: "abs", Typeflag: tar.TypeSymlink, Linkname: outside},
		&tar.Header{Name: "abs/x", Typeflag: tar.TypeReg, Mode: 0o644},
		&tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 20) + outside[1:]},
		&tar.Header{Name: "up/y", Typeflag: tar.TypeDir, Mode: 0o755},
		&tar.Header{Name: "to-new", Typeflag: tar.TypeSymlink, Linkname: "../../"},
		&tar.Header{Name: "to-new/z", Typeflag: tar.TypeReg, Mode: 0o644},
	)
	s, err := Stage(t.Context(), heldDir(t, dst), bytes.NewReader(b))
	if err == nil {
		err = s.Commit()
	}
	if got := namesIn(t, outside); got != "" {
		t.Errorf("outside: %s (%v)", got, err)
	}
	if Unfinished(dst) {
		t.Errorf("left: %s", namesIn(t, dst))
	}
}

// A restoration that is cut off after any of its steps is finished or undone.
func TestRecoverRestoration(t *testing.T) {
	src := t.TempDir()
	hard(t, src)
	want := describeTree(t, src)
	b := backup(t, src)
	prepare := func() (*os.File, *Staging) {
		dst := t.TempDir()
		for _, name := range []string{"one", "two", "d"} {
			os.MkdirAll(dst+"/"+name, 0o700)
		}
		root := heldDir(t, dst)
		s, err := Stage(t.Context(), root, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return root, s
	}
	for name, cut := range map[string]func(dir string) error{
		"staged": func(string) error { return nil },
		"half staged": func(dir string) error {
			return os.RemoveAll(dir + "/" + stagingName + "/" + stagedOld)
		},
		"out": func(dir string) error { return os.Rename(dir+"/"+stagingName, dir+"/"+stagingOut) },
		"half out": func(dir string) error {
			return errors.Join(os.Rename(dir+"/"+stagingName, dir+"/"+stagingOut), os.Rename(dir+"/one", dir+"/"+stagingOut+"/old/one"))
		},
		"in": func(dir string) error {
			for _, n := range []string{"one", "two", "d"} {
				if err := os.Rename(dir+"/"+n, dir+"/"+stagingName+"/old/"+n); err != nil {
					return err
				}
			}
			return os.Rename(dir+"/"+stagingName, dir+"/"+stagingIn)
		},
		"half in": func(dir string) error {
			for _, n := range []string{"one", "two", "d"} {
				if err := os.Rename(dir+"/"+n, dir+"/"+stagingName+"/old/"+n); err != nil {
					return err
				}
			}
			return errors.Join(os.Rename(dir+"/"+stagingName+"/new/d", dir+"/d"), os.Rename(dir+"/"+stagingName, dir+"/"+stagingIn))
		},
	} {
		root, s := prepare()
		s.close()
		if err := cut(root.Name()); err != nil {
			t.Fatal(err)
		}
		if !Unfinished(root.Name()) {
			t.Errorf("%s: seems finished", name)
		}
		for range 2 {
			if err := Recover(root); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		got := describeTree(t, root.Name())
		if strings.Contains(name, "staged") {
			if left := namesIn(t, root.Name()); left != "d,one,two" {
				t.Errorf("%s: left %s", name, left)
			}
		} else if got != want {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

// FuzzStage: no archive makes a file outside, or leaves half of itself.
func FuzzStage(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o750})
	w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../.."})
	w.WriteHeader(&tar.Header{Name: "l/f", Typeflag: tar.TypeReg, Size: 3, Mode: 0o644})
	io.WriteString(w, "abc")
	w.WriteHeader(&tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l/f"})
	w.Close()
	f.Add(b.Bytes())
	f.Add([]byte(block('x', 0o644, 30) + padded(paxRecord("GNU.sparse.major", "1")) + block('0', 0o644, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		top, err := os.MkdirTemp("/dev/shm", "escale-fuzz-") // where flushing costs nothing
		if err != nil {
			top = t.TempDir()
		}
		defer os.RemoveAll(top)
		dir := top + "/volume"
		if err := os.MkdirAll(dir+"/mine", 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		s, err := Stage(t.Context(), root, bytes.NewReader(b))
		if err != nil {
			if got := namesIn(t, dir); got != "mine" {
				t.Errorf("after %v: %s", err, got)
			}
		} else if err := s.Commit(); err != nil {
			t.Errorf("commit: %v", err)
		} else if Unfinished(dir) {
			t.Errorf("left %s", namesIn(t, dir))
		}
		if got := namesIn(t, top); got != "volume" {
			t.Errorf("outside: %s", got)
		}
	})
}
