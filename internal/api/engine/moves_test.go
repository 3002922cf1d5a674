package engine

import (
	"context"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster/move"
	"github.com/containerd/errdefs"
)

// paperMoves has one move, m1.
type paperMoves struct {
	asked    move.Asked
	canceled string
}

func (p *paperMoves) Begin(_ context.Context, a move.Asked) (string, error) {
	p.asked = a
	if a.To == "full" {
		return "", errdefs.ErrConflict.WithMessage("node full has a volume data already")
	}
	return "m1", nil
}

func (p *paperMoves) Get(ref string) (move.Shown, error) {
	if ref != "m1" && ref != "data" {
		return move.Shown{}, errdefs.ErrNotFound.WithMessage("no move of volume " + ref + " is under way")
	}
	return move.Shown{ID: "m1", Phase: "copying", Bytes: 5}, nil
}

func (p *paperMoves) List() ([]move.Shown, error) {
	o, err := p.Get("m1")
	return []move.Shown{o}, err
}

func (p *paperMoves) Cancel(_ context.Context, ref string) error {
	p.canceled = ref
	_, err := p.Get(ref)
	return err
}

func (p *paperMoves) Volumes(context.Context) ([]move.Placed, []string, error) {
	return []move.Placed{{Volume: move.Volume{Name: "data", Driver: "local"}, Node: move.Place{ID: "n1", Name: "one"}}}, []string{"two"}, nil
}

func TestMoveRoutes(t *testing.T) {
	p := &paperMoves{}
	r := newRig(t, func(r *rig) { r.server.cfg.Moves = p })
	for _, x := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"POST", "/escale/moves", `{"Volumes":["data"],"To":"n2","From":"n1","Keep":true}`, 201, `{"ID":"m1"}`},
		{"POST", "/escale/moves", `{"Volumes":["data"],"To":"full"}`, 409, "node full has a volume data already"},
		{"POST", "/escale/moves", `{`, 400, "message"},
		{"GET", "/escale/moves", "", 200, `[{"ID":"m1"`},
		{"GET", "/escale/moves/data", "", 200, `"Phase":"copying"`},
		{"GET", "/escale/moves/nosuch", "", 404, "no move of volume nosuch is under way"},
		{"DELETE", "/escale/moves/m1", "", 204, ""},
		{"DELETE", "/escale/moves/nosuch", "", 404, "nosuch"},
		{"GET", "/escale/volumes", "", 200, `"Missing":["two"]`},
	} {
		status, _, body := r.do(x.method, x.path, x.body)
		if status != x.status || !strings.Contains(body, x.has) {
			t.Errorf("%s %s %s: %d %s, want %d %s", x.method, x.path, x.body, status, body, x.status, x.has)
		}
	}
	if p.canceled != "nosuch" || p.asked.To != "full" {
		t.Errorf("%+v", p)
	}
}
