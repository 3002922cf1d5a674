package backup

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// filled is a view of a cluster with so many secrets, of random bytes.
func filled(t testing.TB, secrets int) store.View {
	t.Helper()
	s := mem.New(store.NewState())
	changes := []store.Change{
		store.Create(&cluster.Cluster{Meta: cluster.Meta{ID: "c1", Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{Key: []byte("the root's key")}}),
		store.Create(&cluster.Node{Meta: cluster.Meta{ID: "n1", Name: "a"}}),
	}
	for i := range secrets {
		data := make([]byte, 1000)
		_, _ = rand.Read(data) // never fails: see crypto/rand
		changes = append(changes, store.Create(&cluster.Secret{Meta: cluster.Meta{ID: fmt.Sprint("s", i), Name: fmt.Sprint("secret", i)}, Spec: cluster.SecretSpec{Data: data}}))
		if len(changes) == store.MaxChanges || i == secrets-1 {
			if _, err := s.Commit(t.Context(), changes...); err != nil {
				t.Fatal(err)
			}
			changes = nil
		}
	}
	if len(changes) > 0 {
		if _, err := s.Commit(t.Context(), changes...); err != nil {
			t.Fatal(err)
		}
	}
	return s.View()
}

var unlock = Secret{UnlockKey: seal.NewKey().String()}

func written(t testing.TB, v store.View, s Secret) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, v, Head{Made: time.Unix(1e9, 0).UTC(), Version: "1.2"}, s); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func same(t *testing.T, v store.View, s *store.State) {
	t.Helper()
	a, b := store.Writes(v), store.Writes(s.View())
	equal := slices.EqualFunc(a, b, func(x, y store.Write) bool { return x.Kind == y.Kind && x.ID == y.ID && bytes.Equal(x.Raw, y.Raw) })
	if !equal || v.Revision() != s.Revision() {
		t.Errorf("%d objects at %d; read %d at %d", len(a), v.Revision(), len(b), s.Revision())
	}
}

// What was written is read, whatever its size, with the secret it was written for alone; nothing
// of it can be seen without.
func TestWhole(t *testing.T) {
	phrase := Secret{Passphrase: "correct horse"}
	for _, n := range []int{0, 1, 500} {
		for _, s := range []Secret{phrase, unlock} {
			v := filled(t, n)
			raw := written(t, v, s)
			if n == 500 && len(raw) < 2*piece {
				t.Fatalf("%d bytes: not several pieces", len(raw))
			}
			state, h, err := Read(bytes.NewReader(raw), s)
			if err != nil {
				t.Fatal(err)
			}
			same(t, v, state)
			if h.Cluster != "c1" || h.Version != "1.2" || h.Made.Unix() != 1e9 || h.Objects != n+2 {
				t.Errorf("%+v", h)
			}
			if bytes.Contains(raw, []byte("secret0")) || bytes.Contains(raw, []byte("root's key")) {
				t.Error("it is not sealed")
			}
		}
	}
	raw := written(t, filled(t, 1), phrase)
	if bytes.Equal(raw, written(t, filled(t, 1), phrase)) {
		t.Error("two backups are sealed with the same key")
	}
	for _, s := range []Secret{{Passphrase: "Correct horse"}, {}, unlock} {
		if _, _, err := Read(bytes.NewReader(raw), s); !errdefs.IsPermissionDenied(err) {
			t.Errorf("opened with %+v: %v", s, err)
		}
	}
	if _, _, err := Read(bytes.NewReader(written(t, filled(t, 1), unlock)), Secret{UnlockKey: seal.NewKey().String()}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("another unlock key: %v", err)
	}
}

// What cannot be locked is not written.
func TestRefused(t *testing.T) {
	var out bytes.Buffer
	for _, s := range []Secret{{}, {Passphrase: "short"}, {UnlockKey: "SWMKEY-1-x"}} {
		if err := Write(&out, filled(t, 1), Head{}, s); !errdefs.IsInvalidArgument(err) || out.Len() > 0 {
			t.Errorf("%+v: %v, %d bytes", s, err, out.Len())
		}
	}
	if err := Write(&out, mem.New(store.NewState()).View(), Head{}, unlock); !errdefs.IsNotFound(err) || out.Len() > 0 {
		t.Errorf("no cluster: %v", err)
	}
	if err := Write(failing{}, filled(t, 1), Head{}, unlock); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

// A file that was cut off or changed anywhere is none.
func TestDamaged(t *testing.T) {
	raw := written(t, filled(t, 3), unlock)
	for n := range raw {
		if _, _, err := Read(bytes.NewReader(raw[:n]), unlock); !errdefs.IsInvalidArgument(err) {
			t.Fatalf("cut off after %d of %d: %v", n, len(raw), err)
		}
	}
	for n := range raw {
		bad := bytes.Clone(raw)
		bad[n] ^= 1
		if _, _, err := Read(bytes.NewReader(bad), unlock); err == nil || !known(err) {
			t.Fatalf("byte %d of %d was changed: %v", n, len(raw), err)
		}
	}
	if _, _, err := Read(io.MultiReader(bytes.NewReader(raw), strings.NewReader("x")), unlock); !errdefs.IsInvalidArgument(err) {
		t.Errorf("something follows: %v", err)
	}
	if _, _, err := Read(strings.NewReader(magic+strings.Repeat("x", 2*maxHead)), unlock); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a long heading: %v", err)
	}
}

// known tells whether an error has one of the kinds that Read gives.
func known(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsPermissionDenied(err)
}

// Pieces of a file that are exchanged or left out are noticed, although each of them is whole.
func TestPiecesInOrder(t *testing.T) {
	head, pieces, digest := parts(t, written(t, filled(t, 1000), unlock))
	if len(pieces) < 4 {
		t.Fatalf("%d pieces", len(pieces))
	}
	for what, list := range map[string][][]byte{
		"exchanged": {pieces[1], pieces[0]}, "left out": append([][]byte{pieces[0]}, pieces[2:]...), "twice": append([][]byte{pieces[0]}, pieces...),
		"the last left out": pieces[:len(pieces)-1],
	} {
		bad := slices.Concat(head, slices.Concat(list...), digest)
		if _, _, err := Read(bytes.NewReader(bad), unlock); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// parts takes a file apart.
func parts(t *testing.T, raw []byte) (head []byte, pieces [][]byte, digest []byte) {
	t.Helper()
	n := len(magic) + bytes.IndexByte(raw[len(magic):], '\n') + 1
	head, raw = raw[:n], raw[n:]
	for last := false; !last; {
		last = raw[0]&0x80 != 0
		size := 4 + (int(raw[1])<<16 | int(raw[2])<<8 | int(raw[3]))
		pieces, raw = append(pieces, raw[:size]), raw[size:]
	}
	return head, pieces, raw
}

// What a later version has written is refused as such; a lock that would cost too much is not tried.
func TestHeads(t *testing.T) {
	raw := written(t, filled(t, 1), Secret{Passphrase: "correct horse"})
	head, pieces, digest := parts(t, raw)
	for what, c := range map[string]struct {
		change func(*Head)
		is     func(error) bool
	}{
		"later":       {func(h *Head) { h.Format = 2 }, errdefs.IsFailedPrecondition},
		"none":        {func(h *Head) { h.Format = 0 }, errdefs.IsInvalidArgument},
		"memory":      {func(h *Head) { h.Lock.Memory = 1 << 30 }, errdefs.IsInvalidArgument},
		"passes":      {func(h *Head) { h.Lock.Time = 1 << 30 }, errdefs.IsInvalidArgument},
		"other lock":  {func(h *Head) { h.Lock.By = "retina" }, errdefs.IsFailedPrecondition},
		"other words": {func(h *Head) { h.Version = "1.3" }, errdefs.IsInvalidArgument},
	} {
		var h Head
		if err := json.Unmarshal(head[len(magic):], &h); err != nil {
			t.Fatal(err)
		}
		c.change(&h)
		line, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		bad := slices.Concat([]byte(magic), line, []byte("\n"), slices.Concat(pieces...), digest)
		if _, _, err := Read(bytes.NewReader(bad), Secret{Passphrase: "correct horse"}); !c.is(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	raw := written(f, filled(f, 2), unlock)
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte(magic + `{"Format":1,"Cluster":"c","Lock":{"By":"unlock key"}}` + "\n\x80\x00\x00\x10"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if bytes.Contains(raw, []byte(ByPassphrase)) {
			t.Skip("it takes its time")
		}
		state, _, err := Read(bytes.NewReader(raw), unlock)
		if err != nil && !known(err) {
			t.Errorf("an error of no kind: %v", err)
		}
		if (err == nil) != (state != nil) {
			t.Error("neither nor")
		}
	})
}

// FuzzPieces reads pieces that are opened, with anything in them.
func FuzzPieces(f *testing.F) {
	f.Add([]byte(`{"Format":1,"Revision":1}` + "\n" + `{"Kind":"node","Object":{"ID":"x"}}` + "\n{}\n"))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		var key fileKey
		var out bytes.Buffer
		to, err := newSealer(&out, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
		in, err := newOpener(newReader(&out), key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := load(in); err != nil && !known(err) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}
