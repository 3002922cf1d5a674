package ca

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

// box seals by turning what it is given around; another one opens nothing.
type box string

func (b box) Seal(name string, plain []byte) []byte {
	out := append([]byte(string(b)+name+":"), plain...)
	slices.Reverse(out)
	return out
}

func (b box) Open(name string, sealed []byte) ([]byte, error) {
	out := bytes.Clone(sealed)
	slices.Reverse(out)
	plain, ok := bytes.CutPrefix(out, []byte(string(b)+name+":"))
	if !ok {
		return nil, errdefs.ErrFailedPrecondition
	}
	return plain, nil
}

// A key that is kept sealed is not in the file; who opens that knows who the node is, and can prove
// nothing before it is unlocked.
func TestLock(t *testing.T) {
	a := authority(t, root(t), nil)
	k := node(t, a, "n1", Manager, "c1", 0)
	plain := func() bool {
		raw, err := os.ReadFile(k.path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(raw, []byte("PRIVATE KEY"))
	}
	if err := k.Lock(box("one")); err != nil || plain() || k.Locked() {
		t.Fatalf("kept as it is: %v", err)
	}
	again, err := Open(k.path)
	if err != nil || !again.Locked() || again.Identity().Peer != k.Identity().Peer || again.Identity().Issuer != k.Identity().Issuer {
		t.Fatalf("%v %+v", err, again)
	}
	is := k.Identity().kept
	for what, err := range map[string]error{
		"exchanged": again.Set([]byte(is.Key), []byte(is.Chain), []byte(is.Roots)), "another root": again.Trust(root(t).PEM()), "locked": again.Lock(nil), "another box": again.Unlock(box("two")),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s while it is locked: %v", what, err)
		}
	}
	if _, _, err := again.WriteFiles(t.TempDir()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("files of it: %v", err)
	}
	if _, err := talk(again, nil, k.Client(Manager)); err == nil {
		t.Error("it answers")
	}
	if _, err := talk(k, nil, again.Client(Manager)); err == nil {
		t.Error("it calls")
	}
	told := again.Changed()
	if err := again.Unlock(box("one")); err != nil || again.Locked() {
		t.Fatal(err)
	}
	<-told
	if _, err := talk(again, nil, k.Client(Manager)); err != nil {
		t.Error(err)
	}
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(csr, Manager, "n1", "c1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Set(key, chain, a.Trusted()); err != nil || plain() {
		t.Errorf("renewed, it is kept as it is: %v", err)
	}
	if err := again.Lock(nil); err != nil || !plain() {
		t.Errorf("kept sealed still: %v", err)
	}
	if last, err := Open(k.path); err != nil || last.Locked() {
		t.Errorf("kept as it is, it is locked: %v", err)
	}
}

// Any text is read as an identity or refused, with a kind.
func FuzzIdentity(f *testing.F) {
	k := node(f, authority(f, root(f), nil), "n1", Manager, "c1", 0)
	for _, by := range []Sealer{nil, box("x")} {
		raw, err := json.Marshal(k.Identity().sealed(by))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		id, err := parseIdentity(raw)
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("an error of no kind: %v", err)
		}
		if err == nil && id.locked() != (len(id.kept.Sealed) > 0) {
			t.Error("locked, and not sealed, or the other way round")
		}
	})
}
