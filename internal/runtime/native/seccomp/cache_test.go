package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCached(t *testing.T) {
	dir, s := filepath.Join(t.TempDir(), "a", "filters"), dockers(t)
	want, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	read := func() {
		t.Helper()
		p, err := Cached(dir, s)
		if err != nil || p.Flags != want.Flags || !bytes.Equal(p.Filter, want.Filter) {
			t.Fatalf("%v, or another program than Compile's", err)
		}
	}
	read()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	path := files[0]
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A file is used: one that says something else in a valid way is believed.
	key := digest(s)
	other := (&Program{Flags: want.Flags, Filter: code{ret(retAllow)}.bytes()}).encode(key)
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Cached(dir, s); err != nil || p.Len() != 1 {
		t.Fatal("the file was not read: ", p.Len(), err)
	}
	spoil := map[string]func() error{
		"empty": func() error { return os.Truncate(path, 0) },
		"short": func() error { return os.Truncate(path, int64(len(good)-1)) },
		"long":  func() error { return os.WriteFile(path, append(bytes.Clone(good), 0), 0o600) },
		"bit": func() error {
			b := bytes.Clone(good)
			b[len(b)/2] ^= 4
			return os.WriteFile(path, b, 0o600)
		},
		"others may write": func() error {
			if err := os.WriteFile(path, other, 0o600); err != nil {
				return err
			}
			return os.Chmod(path, 0o620)
		},
		"link": func() error {
			if err := os.WriteFile(path+"2", other, 0o600); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Symlink(path+"2", path)
		},
		"of another profile": func() error { return os.WriteFile(path, want.encode(sha256.Sum256([]byte("x"))), 0o600) },
	}
	for name, f := range spoil {
		if err := f(); err != nil {
			t.Fatal(name, err)
		}
		read()
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, good) {
			t.Errorf("%s: not made anew: %v", name, err)
		}
		if st, err := os.Lstat(path); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	// Without the cache there is a program all the same.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	read()
}

func TestCacheIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	var first, last string
	for i := range uint(maxCached + 20) {
		s.DefaultErrnoRet = &i
		if _, err := Cached(dir, s); err != nil {
			t.Fatal(err)
		}
		key := digest(s)
		last = filepath.Join(dir, hex.EncodeToString(key[:])+cacheSuffix)
		if first == "" {
			first = last
		}
		// Times of files may be coarse: each is a second younger than the one before.
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(last, at, at); err != nil {
			t.Fatal(err)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > maxCached {
			t.Fatal(len(files), err)
		}
	}
	if _, err := os.Stat(first); !os.IsNotExist(err) {
		t.Errorf("the oldest is still there: %v", err)
	}
	if _, err := os.Stat(last); err != nil {
		t.Error(err)
	}
}

// TestDigest: whatever changes a program changes the digest.
func TestDigest(t *testing.T) {
	seen := map[[sha256.Size]byte]string{}
	one, zero := uint(1), uint(0)
	for _, s := range []specs.LinuxSeccomp{
		{DefaultAction: specs.ActErrno},
		{DefaultAction: specs.ActErrno, DefaultErrnoRet: &zero},
		{DefaultAction: specs.ActErrno, DefaultErrnoRet: &one},
		{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{}},
		{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}},
		{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, nil, "read", "write")}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, nil, "read"), ruleOf(specs.ActAllow, nil, "write")}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActLog, nil, "read", "write")}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, []specs.LinuxSeccompArg{{Value: 1, Op: specs.OpEqualTo}}, "read", "write")}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, []specs.LinuxSeccompArg{{ValueTwo: 1, Op: specs.OpEqualTo}}, "read", "write")}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo}}, "read", "write")}},
	} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[digest(&s)]; ok {
			t.Errorf("%s and %s have one digest", before, b)
		}
		seen[digest(&s)] = string(b)
	}
}

// FuzzDecode: a file of the cache is either what was written or refused.
func FuzzDecode(f *testing.F) {
	key := sha256.Sum256([]byte("key"))
	good := (&Program{Flags: 4, Filter: code{ret(retAllow)}.bytes()}).encode(key)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte(cacheMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decode(b, key); err == nil && !bytes.Equal(p.encode(key), b) {
			t.Fatalf("%x was taken for %+v", b, p)
		}
	})
}
