package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"escale.dev/escale/internal/api/peer"
	"escale.dev/escale/internal/cluster/move"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// paperContents take every step, and a copy for as long as nobody calls it off.
type paperContents struct {
	mu    sync.Mutex
	did   []string
	here  bool
	block bool
}

func (p *paperContents) note(what ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.did = append(p.did, strings.Join(what, " "))
	return nil
}

func (*paperContents) Users(name string) []container.VolumeUser {
	return []container.VolumeUser{{Name: "of-" + name, Task: "t1", Running: true}}
}

func (p *paperContents) Hold(_ context.Context, name string, m volume.Moving) error {
	return p.note("hold", name, m.ID, m.Peer)
}
func (p *paperContents) Free(name, id string) error { return p.note("free", name, id) }
func (p *paperContents) Drop(name, id string) error { return p.note("drop", name, id) }

func (p *paperContents) Send(_ context.Context, name, id, peer string, _ func(container.Leaving) (io.Writer, error)) error {
	return p.note("send", name, id, peer)
}

func (p *paperContents) Arrived(context.Context, string, string) (bool, error) { return p.here, nil }

func (p *paperContents) Receive(ctx context.Context, name string, m volume.Moving, l container.Leaving, content io.Reader, told func(int64)) error {
	if p.block {
		<-ctx.Done()
		_ = p.note("gave up", name)
		return errors.New("a file was closed")
	}
	b, err := io.ReadAll(content)
	told(int64(len(b)))
	return errors.Join(err, p.note("receive", name, m.ID, m.Peer, string(b), l.Labels["a"]))
}

type paperList struct{}

func (paperList) Get(_ context.Context, name string) (volume.Volume, error) {
	if name != "data" {
		return volume.Volume{}, volume.ErrNone(name)
	}
	return volume.Volume{Name: name, Driver: "local", Moving: &volume.Moving{ID: "m1"}}, nil
}

func (l paperList) List(ctx context.Context) ([]volume.Volume, []string) {
	v, _ := l.Get(ctx, "data")
	return []volume.Volume{v}, nil
}

func newPaperMoves() (*ownMoves, *paperContents) {
	p := &paperContents{}
	return &ownMoves{contents: p, list: paperList{}, log: slog.New(slog.DiscardHandler), open: func(_ context.Context, s move.Step) (container.Leaving, io.ReadCloser, error) {
		if s.Peer != "n1" {
			return container.Leaving{}, nil, errdefs.ErrUnavailable
		}
		return container.Leaving{Labels: map[string]string{"a": "b"}, Total: 9}, io.NopCloser(strings.NewReader("content")), nil
	}}, p
}

// A node takes the steps that the leader asks for, of the highest term that it has heard of.
func TestStepsOfMoves(t *testing.T) {
	o, p := newPaperMoves()
	var told []int64
	tell := func(bytes, total int64) { told = append(told, bytes, total) }
	s := move.Step{Move: "m1", Volume: "data", Peer: "n1", Term: 5}
	for _, what := range []string{peer.StepHold, peer.StepFetch, peer.StepFree, peer.StepDrop} {
		if err := o.Do(t.Context(), what, s, tell); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, want := strings.Join(p.did, ","), "hold data m1 n1,receive data m1 n1 content b,free data m1,drop data m1"; got != want || len(told) != 2 || told[0] != 7 || told[1] != 9 {
		t.Errorf("%s, told %v, want %s", got, told, want)
	}
	s.Term = 4
	if err := o.Do(t.Context(), peer.StepHold, s, tell); !errdefs.IsPermissionDenied(err) || len(p.did) != 4 {
		t.Errorf("a leader of before: %v", err)
	}
	s.Term, s.Peer = 6, "n3"
	if err := o.Do(t.Context(), peer.StepFetch, s, tell); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	p.here = true
	if err := o.Do(t.Context(), peer.StepFetch, s, tell); err != nil || len(p.did) != 4 {
		t.Errorf("fetched again: %v", err)
	}
	for _, name := range []string{"", "data"} {
		if list, err := o.Volumes(t.Context(), name); err != nil || len(list) != 1 || list[0].Moving != "m1" || list[0].Users[0] != (move.User{Name: "of-data", Task: "t1", Running: true}) {
			t.Errorf("%q: %+v, %v", name, list, err)
		}
	}
	if list, err := o.Volumes(t.Context(), "nosuch"); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// A copy that is under way ends when the next step of its volume is asked for, and before that is taken.
func TestCopyCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, p := newPaperMoves()
		p.block = true
		s := move.Step{Move: "m1", Volume: "data", Peer: "n1", Term: 5}
		ended := make(chan error, 1)
		go func() { ended <- o.Do(t.Context(), peer.StepFetch, s, func(int64, int64) {}) }()
		synctest.Wait()
		s.Term = 6
		if err := o.Do(t.Context(), peer.StepDrop, s, nil); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errdefs.IsUnavailable(err) || strings.Join(p.did, ",") != "gave up data,drop data m1" {
			t.Errorf("%v: %v", err, p.did)
		}
	})
}
