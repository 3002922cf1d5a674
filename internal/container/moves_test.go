package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"escale.dev/escale/internal/volume"
	"escale.dev/escale/internal/volume/local"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// movable are volumes on the disk, below a manager's directory.
func movable(t *testing.T, f *fakeEngine, dir string) *local.Store {
	t.Helper()
	s, err := local.Open(local.Config{Dir: filepath.Join(dir, "moved"), Events: f, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A volume is held for a move only while no container has it but tasks that are over.
func TestHoldVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, dir := newFakeEngine(), t.TempDir()
		m := f.manager(t, dir)
		defer m.Close()
		s := movable(t, f, dir)
		moves := m.Moves(s)
		if _, err := s.Acquire(t.Context(), volume.Request{Name: "data"}, ""); err != nil {
			t.Fatal(err)
		}
		mounts := []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/data"}}
		keep(t, m, "t1", func(c *Create) { c.HostConfig.Mounts = mounts })
		out := volume.Moving{ID: "m1", Peer: "n2"}
		refused := func(words string) {
			t.Helper()
			if err := moves.Hold(t.Context(), "data", out); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), words) {
				t.Errorf("%v, want %s", err, words)
			}
			if v, err := s.Get(t.Context(), "data"); err != nil || v.Moving != nil {
				t.Errorf("it is held all the same: %+v, %v", v.Moving, err)
			}
		}
		refused("volume data is in use by t1")
		if err := m.Stop(t.Context(), "t1", Stop{}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Create(t.Context(), Create{Name: "mine", Config: &container.Config{Image: "debian"}, HostConfig: &container.HostConfig{Mounts: mounts}}); err != nil {
			t.Fatal(err)
		}
		refused("volume data is in use by mine") // though it has never run
		if u := moves.Users("data"); len(u) != 2 || u[0] != (VolumeUser{Name: "mine"}) || u[1] != (VolumeUser{Name: "t1", Task: "t1"}) {
			t.Errorf("%+v", u)
		}
		if err := m.Remove(t.Context(), "mine", Remove{}); err != nil {
			t.Fatal(err)
		}
		if err := moves.Hold(t.Context(), "data", out); err != nil {
			t.Fatal(err)
		}
		if err := moves.Hold(t.Context(), "nosuch", out); !errdefs.IsNotFound(err) {
			t.Errorf("%v", err)
		}
	})
}

// send is what one node sends of a volume to another.
func send(t *testing.T, moves Moves, id, peer string) (l Leaving, content []byte, err error) {
	t.Helper()
	var b bytes.Buffer
	err = moves.Send(t.Context(), "data", id, peer, func(told Leaving) (io.Writer, error) {
		l = told
		return &b, nil
	})
	return l, b.Bytes(), err
}

// A volume goes from one node to another with its record; it is given to that node only, and what is cut
// off, killed or spoilt on the way leaves nothing.
func TestSendAndReceiveVolume(t *testing.T) {
	f, g, here, there := newFakeEngine(), newFakeEngine(), t.TempDir(), t.TempDir()
	a, b := f.manager(t, here), g.manager(t, there)
	defer a.Close()
	defer b.Close()
	from, to := movable(t, f, here), movable(t, g, there)
	v, err := from.Acquire(t.Context(), volume.Request{Name: "data", Labels: map[string]string{"a": "b"}}, "")
	if err == nil {
		err = os.WriteFile(filepath.Join(v.Path, "f"), bytes.Repeat([]byte("text"), 1<<20), 0o640)
	}
	if err == nil {
		err = os.Chmod(v.Path, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Hold("data", volume.Moving{ID: "m1", Peer: "n2"}); err != nil {
		t.Fatal(err)
	}
	for _, who := range [][2]string{{"m1", "n3"}, {"m2", "n2"}} {
		if _, _, err := send(t, a.Moves(from), who[0], who[1]); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%v was given it: %v", who, err)
		}
	}
	l, content, err := send(t, a.Moves(from), "m1", "n2")
	if err != nil {
		t.Fatal(err)
	}
	in := volume.Moving{ID: "m1", In: true, Peer: "n1"}
	moves := b.Moves(to)
	var told int64
	receive := func(r io.Reader) error {
		return moves.Receive(t.Context(), "data", in, l, r, func(n int64) { told = n })
	}
	nothing := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: it is taken", what)
		}
		if here, err := moves.Arrived(t.Context(), "data", "m1"); here || err != nil {
			t.Errorf("%s: %t, %v", what, here, err)
		}
		if list, err := os.ReadDir(filepath.Join(there, "moved")); err != nil || len(list) > 0 {
			t.Errorf("%s: left %v, %v", what, list, err)
		}
	}
	nothing("cut off", receive(bytes.NewReader(content[:len(content)/2])))
	nothing("cut off between two entries", receive(bytes.NewReader(content[:len(content)-1024])))
	broken := errors.New("broken")
	nothing("a checksum that is wrong", receive(io.MultiReader(bytes.NewReader(content), iotest.ErrReader(broken))))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	nothing("ended", moves.Receive(ended, "data", in, l, bytes.NewReader(content), func(int64) {}))
	if err := receive(bytes.NewReader(content)); err != nil || told < 4<<20 {
		t.Fatalf("%v, told of %d bytes", err, told)
	}
	if here, err := moves.Arrived(t.Context(), "data", "m1"); !here || err != nil {
		t.Errorf("%t, %v", here, err)
	}
	if _, err := moves.Arrived(t.Context(), "data", "m2"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("for another move: %v", err)
	}
	is, err := to.Get(t.Context(), "data")
	info, failed := os.Stat(is.Path)
	if err != nil || failed != nil || is.Labels["a"] != "b" || !is.CreatedAt.Equal(v.CreatedAt) || info.Mode().Perm() != 0o700 {
		t.Errorf("%+v %v, %v, %v", is, info.Mode(), err, failed)
	}
	if err := errors.Join(moves.Free("data", "m1"), a.Moves(from).Drop("data", "m1")); err != nil || from.Has("data") {
		t.Error(err)
	}
	if path, err := to.Mount(t.Context(), "data", "c"); err != nil || path != is.Path {
		t.Errorf("%s, %v", path, err)
	}
}
