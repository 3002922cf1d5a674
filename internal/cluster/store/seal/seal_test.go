package seal

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func ring(t *testing.T, keys ...Key) *Ring {
	t.Helper()
	r, err := NewRing(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What is sealed is opened by who has the key, under its own name, unchanged: else not.
func TestSeal(t *testing.T) {
	old, now := NewKey(), NewKey()
	was := ring(t, old)
	is, err := was.With(now)
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("the password of the database")
	sealed := was.Seal("secret/x", plain)
	if bytes.Contains(sealed, plain[:8]) || bytes.Equal(sealed, was.Seal("secret/x", plain)) {
		t.Error("sealed, and can be read or compared")
	}
	for name, r := range map[string]*Ring{"the same": was, "with a newer key": is} {
		if got, err := r.Open("secret/x", sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if was.Newest(sealed) != true || is.Newest(sealed) || !is.Newest(is.Seal("y", nil)) {
		t.Error("which key seals now is not known")
	}
	if _, err := ring(t, now).Open("secret/x", sealed); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without its key: %v", err)
	}
	if _, err := was.Open("secret/y", sealed); !errdefs.IsDataLoss(err) {
		t.Errorf("under another name: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := was.Open("secret/x", bad); err == nil {
			t.Errorf("byte %d was changed, and nobody saw it", i)
		}
	}
	if _, err := NewRing(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no key: %v", err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.key")
	if _, err := Load(path, nil); !errdefs.IsNotFound(err) {
		t.Errorf("no file: %v", err)
	}
	r := ring(t, NewKey(), NewKey())
	value := r.Seal("n", []byte("v"))
	unlock, other := NewKey(), NewKey()
	for _, c := range []struct {
		name       string
		lock, with *Key
		ok         bool
		kind       func(error) bool
	}{
		{"open", nil, nil, true, nil},
		{"open, and a key given", nil, &unlock, true, nil},
		{"locked", &unlock, &unlock, true, nil},
		{"locked, no key", &unlock, nil, false, errdefs.IsFailedPrecondition},
		{"locked, a wrong key", &unlock, &other, false, errdefs.IsPermissionDenied},
	} {
		if err := Save(path, r, c.lock); err != nil {
			t.Fatal(err)
		}
		if locked, err := Locked(path); err != nil || locked != (c.lock != nil) {
			t.Errorf("%s: locked %v, %v", c.name, locked, err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.lock != nil && strings.Contains(string(raw), "Keys") {
			t.Errorf("%s: the file tells its keys", c.name)
		}
		if s, err := os.Stat(path); err != nil || s.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", c.name, s.Mode(), err)
		}
		got, err := Load(path, c.with)
		if !c.ok {
			if !c.kind(err) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if plain, err := got.Open("n", value); err != nil || string(plain) != "v" {
			t.Errorf("%s: %q, %v", c.name, plain, err)
		}
	}
}

func TestParseKey(t *testing.T) {
	k := NewKey()
	if got, err := ParseKey(" " + k.String() + "\n"); err != nil || got != k {
		t.Errorf("%s: %v", k, err)
	}
	if !strings.HasPrefix(k.String(), "SWMKEY-1-") || len(k.String()) != 52 {
		t.Errorf("%s is not of Docker's form", k)
	}
	for _, s := range []string{"", "SWMKEY-1-", k.String()[1:], k.String()[:51], k.String() + "A", "SWMKEY-1-" + strings.Repeat("!", 43)} {
		if _, err := ParseKey(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// Any bytes are a file of keys or refused by a kind; any value opened is what was sealed.
func FuzzParse(f *testing.F) {
	unlock := Key{1}
	path := filepath.Join(f.TempDir(), "k")
	r, err := NewRing(Key{2}, Key{3})
	if err != nil {
		f.Fatal(err)
	}
	for _, lock := range []*Key{nil, &unlock} {
		if err := Save(path, r, lock); err != nil {
			f.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, r.Seal("n", []byte("v")))
	}
	f.Add([]byte(`{"Format":2}`), []byte{1})
	f.Fuzz(func(t *testing.T, raw, value []byte) {
		for _, u := range []*Key{nil, &unlock} {
			if _, err := parse(raw, u); err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) && !errdefs.IsPermissionDenied(err) {
				t.Errorf("an error of no kind: %v", err)
			}
		}
		if _, err := r.Open("n", value); err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
