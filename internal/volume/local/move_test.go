package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// A volume that a move has is nobody's, whatever becomes of the engine, until the move lets go of it.
func TestHoldForAMove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	s, _ := open(t, dir)
	create(t, s, volume.Request{Name: "data"})
	out := volume.Moving{ID: "m1", Peer: "n2"}
	for range 2 { // the second time changes nothing
		if err := s.Hold("data", out); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(s *Store) {
		t.Helper()
		_, acquired := s.Acquire(t.Context(), volume.Request{Name: "data"}, "c0ffee")
		_, mounted := s.Mount(t.Context(), "data", "c0ffee")
		for what, err := range map[string]error{"acquire": acquired, "mount": mounted, "remove": s.Remove(t.Context(), "data", true), "another move": s.Hold("data", volume.Moving{ID: "m2", Peer: "n3"})} {
			if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume data is being moved to node n2") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	refused(s)
	s, _ = open(t, dir) // a new engine
	refused(s)
	if v, err := s.Get(t.Context(), "data"); err != nil || v.Moving == nil || *v.Moving != out {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.Acquire(t.Context(), volume.Request{Name: "data", Held: true}, "old"); err != nil {
		t.Errorf("a container that has it already: %v", err)
	}
	if err := s.Free("data", "m2"); err != nil {
		t.Error(err)
	}
	refused(s) // that was another's
	if err := s.Drop("data", "m1"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume is in use - [old]") {
		t.Errorf("dropped while it is held: %v", err)
	}
	for range 2 {
		if err := s.Free("data", "m1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Mount(t.Context(), "data", "c0ffee"); err != nil {
		t.Error(err)
	}
	if err := s.Drop("data", "m1"); err != nil || !s.Has("data") {
		t.Errorf("a move that is over has dropped it: %v", err)
	}
	s, _ = open(t, dir)
	if v, err := s.Get(t.Context(), "data"); err != nil || v.Moving != nil {
		t.Errorf("freed and opened again: %+v, %v", v, err)
	}
	if err := s.Hold("data", out); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Drop("data", "m1"); err != nil || s.Has("data") {
			t.Errorf("dropped: %v", err)
		}
	}
	if err := s.Hold("data", out); !errdefs.IsNotFound(err) {
		t.Errorf("held after it was dropped: %v", err)
	}
	wants(t, dir, 0)
}

// wants counts what lies in a directory of volumes.
func wants(t *testing.T, dir string, n int) {
	t.Helper()
	if list, err := os.ReadDir(dir); err != nil || len(list) != n {
		t.Errorf("%d of %d are there: %v, %v", len(list), n, list, err)
	}
}

// A volume that comes is there whole, or not at all; and nobody's, until its move lets go of it.
func TestArrive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	s, _ := open(t, dir)
	created := time.Date(2025, 1, 2, 3, 4, 5, 6, time.UTC)
	in := volume.Moving{ID: "m1", In: true, Peer: "n1"}
	r := volume.Request{Name: "data", Labels: map[string]string{"a": "b"}}
	begin := func() volume.Arrival {
		t.Helper()
		a, err := s.Arrive(r, created, in)
		if err == nil {
			err = os.WriteFile(filepath.Join(a.Root().Name(), "f"), []byte("x"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := begin()
	if err := a.Abort(); err != nil || s.Has("data") {
		t.Errorf("given up: %v", err)
	}
	wants(t, dir, 0)
	begin()
	s, _ = open(t, dir) // the engine was killed
	wants(t, dir, 0)
	first, second := begin(), begin()
	if err := first.Keep(); err != nil {
		t.Fatal(err)
	}
	if err := second.Keep(); !errdefs.IsAlreadyExists(err) {
		t.Errorf("kept twice: %v", err)
	}
	if err := second.Abort(); err != nil {
		t.Error(err)
	}
	wants(t, dir, 1)
	s, _ = open(t, dir)
	v, err := s.Get(t.Context(), "data")
	if err != nil || v.Labels["a"] != "b" || !v.CreatedAt.Equal(created) || v.Moving == nil || *v.Moving != in {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.Mount(t.Context(), "data", "c"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume data is being moved here from node n1") {
		t.Errorf("mounted: %v", err)
	}
	if _, err := s.Arrive(r, created, in); !errdefs.IsAlreadyExists(err) {
		t.Errorf("it comes again: %v", err)
	}
	if _, err := s.Arrive(volume.Request{Name: "../x"}, created, in); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad name: %v", err)
	}
	if err := s.FreeAll(); err != nil {
		t.Error(err)
	}
	path, err := s.Mount(t.Context(), "data", "c")
	if b, failed := os.ReadFile(filepath.Join(path, "f")); err != nil || failed != nil || string(b) != "x" {
		t.Errorf("%q, %v, %v", b, err, failed)
	}
}

// What is mounted from elsewhere has no content to move; a note that cannot be read keeps a volume from all.
func TestHoldOddVolumes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	s, _ := open(t, dir)
	create(t, s, volume.Request{Name: "far", Options: map[string]string{"type": "nfs", "device": ":/x", "o": "addr=192.0.2.1"}})
	if err := s.Hold("far", volume.Moving{ID: "m", Peer: "n"}); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "nfs") {
		t.Errorf("%v", err)
	}
	v := create(t, s, volume.Request{Name: "data"})
	if err := os.WriteFile(filepath.Join(filepath.Dir(v.Path), movingFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, dir)
	if _, err := s.Mount(t.Context(), "data", "c"); !errdefs.IsConflict(err) {
		t.Errorf("mounted: %v", err)
	}
}

func FuzzMoving(f *testing.F) {
	f.Add([]byte(`{"Version":1,"ID":"m","In":true,"Peer":"n"}`))
	f.Add([]byte(`{"Version":2,"ID":"m"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n movingNote
		if err := n.parse(b); err == nil && (n.ID == "" || n.Version != format) {
			t.Errorf("%q became %+v", b, n)
		}
	})
}
