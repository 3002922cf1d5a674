package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/move"
	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// rack has volumes that are made up.
type rack struct {
	mu      sync.Mutex
	steps   []string
	content []byte
	to      string        // who may have it
	fail    error         // amid the content, or of a step
	wait    chan struct{} // a fetch ends with its context only, and tells of that here
}

func (s *rack) Volumes(_ context.Context, name string) ([]move.Volume, error) {
	all := []move.Volume{{Name: "a", Driver: "local", Labels: map[string]string{"x": "y"}}, {Name: "b", Driver: "local", Users: []move.User{{Name: "zoe"}}}}
	return slices.DeleteFunc(all, func(v move.Volume) bool { return name != "" && v.Name != name }), nil
}

func (s *rack) Do(ctx context.Context, what string, st move.Step, told func(bytes, total int64)) error {
	s.mu.Lock()
	s.steps = append(s.steps, fmt.Sprintf("%s %s %s %d", what, st.Volume, st.Peer, st.Term))
	s.mu.Unlock()
	if what == StepFetch {
		told(1, 10)
		if s.wait != nil {
			<-ctx.Done()
			close(s.wait)
			return ctx.Err()
		}
		told(10, 10)
	}
	return s.fail
}

func (s *rack) Send(_ context.Context, st move.Step, to string, open func(container.Leaving) (io.Writer, error)) error {
	if st.Move != "m1" || st.Volume != "a" || to != s.to {
		return errdefs.ErrPermissionDenied.WithMessage("volume a is not on its way to node " + to)
	}
	w, err := open(container.Leaving{Labels: map[string]string{"x": "y"}, CreatedAt: time.Unix(5, 6).UTC(), Total: 7})
	if err != nil {
		return err
	}
	if _, err := w.Write(s.content); err != nil {
		return err
	}
	return s.fail
}

// Managers have nodes take steps; others may not even ask which volumes there are.
func TestVolumeSteps(t *testing.T) {
	s := newSite(t)
	has := &rack{}
	s.node("n1", ca.Worker, Config{Volumes: has})
	boss, worker := s.node("m1", ca.Manager, Config{}), s.node("n2", ca.Worker, Config{})
	list, err := boss.Dialer.Volumes(t.Context(), "n1", "")
	if err != nil || len(list) != 2 || list[0].Labels["x"] != "y" || list[1].Users[0].Name != "zoe" {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := boss.Dialer.Volumes(t.Context(), "n1", "b"); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	step := move.Step{Move: "m1", Volume: "a", Peer: "n2", Term: 3}
	for _, what := range []string{StepHold, StepFree, StepDrop} {
		if err := boss.VolumeStep(t.Context(), "n1", what, step, nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var told []int64
	if err := boss.VolumeStep(t.Context(), "n1", StepFetch, step, func(bytes, total int64) { told = append(told, bytes, total) }); err != nil || !slices.Equal(told, []int64{0, 0, 1, 10, 10, 10}) {
		t.Errorf("%v, %v", told, err)
	}
	if want := "hold a n2 3,free a n2 3,drop a n2 3,fetch a n2 3"; strings.Join(has.steps, ",") != want {
		t.Errorf("%v, want %s", has.steps, want)
	}
	for _, kind := range []error{errdefs.ErrConflict, errdefs.ErrAlreadyExists, errdefs.ErrNotFound, errdefs.ErrNotImplemented, errdefs.ErrUnavailable} {
		has.fail = fmt.Errorf("volume a is odd: %w", kind)
		for _, what := range []string{StepHold, StepFetch} {
			if err := boss.VolumeStep(t.Context(), "n1", what, step, nil); !errors.Is(err, kind) || !strings.Contains(err.Error(), "volume a is odd") {
				t.Errorf("%s: %v, want %v", what, err, kind)
			}
		}
	}
	n := len(has.steps)
	for _, bad := range []func() error{
		func() error { return boss.VolumeStep(t.Context(), "n1", "burn", step, nil) },
		func() error { return boss.VolumeStep(t.Context(), "n1", StepHold, move.Step{Move: "m1"}, nil) },
	} {
		if err := bad(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v", err)
		}
	}
	if _, err := worker.Dialer.Volumes(t.Context(), "n1", ""); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a worker is told of volumes: %v", err)
	}
	if err := worker.VolumeStep(t.Context(), "n1", StepDrop, step, nil); !errdefs.IsPermissionDenied(err) || len(has.steps) != n {
		t.Errorf("a worker has steps taken: %v", err)
	}
	if err := boss.VolumeStep(t.Context(), "n2", StepHold, step, nil); !errdefs.IsNotFound(err) {
		t.Errorf("a node that moves none: %v", err)
	}
	has.wait = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	err = boss.VolumeStep(ctx, "n1", StepFetch, step, func(bytes, _ int64) {
		if bytes > 0 {
			cancel()
		}
	})
	if <-has.wait; !errors.Is(err, context.Canceled) { // the node has given up, too
		t.Errorf("%v", err)
	}
}

// The content goes to one node, and is whole or an error.
func TestVolumeContent(t *testing.T) {
	s := newSite(t)
	has := &rack{content: bytes.Repeat([]byte("0123456789abcdef"), 1<<17), to: "n2"}
	n1 := s.node("n1", ca.Worker, Config{Volumes: has})
	n2, n3 := s.node("n2", ca.Worker, Config{}), s.node("n3", ca.Manager, Config{})
	step := move.Step{Move: "m1", Volume: "a", Peer: "n1"}
	read := func(d *here) (container.Leaving, []byte, error) {
		l, r, err := d.VolumeContent(t.Context(), step)
		if err != nil {
			return l, nil, err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return l, b, err
	}
	l, b, err := read(n2)
	if err != nil || !bytes.Equal(b, has.content) || l.Labels["x"] != "y" || l.Total != 7 || !l.CreatedAt.Equal(time.Unix(5, 6)) {
		t.Errorf("%+v, %d bytes, %v", l, len(b), err)
	}
	if _, _, err := read(n3); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a manager that it does not go to has it: %v", err)
	}
	has.fail = errors.New("input/output error")
	if _, b, err := read(n2); !errdefs.IsUnavailable(err) {
		t.Errorf("broken off after %d bytes: %v", len(b), err)
	}
	n1.stop()
	if _, _, err := read(n2); !errdefs.IsUnavailable(err) {
		t.Errorf("of a node that has gone: %v", err)
	}
}
