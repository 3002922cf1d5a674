package move

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
)

// People are told of nodes by the names of their hosts, and by their ids where two have one name.
func TestNamed(t *testing.T) {
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	var nodes []store.Change
	for id, name := range map[string]string{"7vd9amwmcseg15vb3rqvisntq": "east", "dj4xvqypup0uh9w9czhsd7ini": "west", "9s82gjdmk15opjbs9a1svokf0": "west", "x1": ""} {
		nodes = append(nodes, store.Create(&cluster.Node{Meta: cluster.Meta{ID: id, Name: name}}))
	}
	if _, err := s.Commit(t.Context(), nodes...); err != nil {
		t.Fatal(err)
	}
	o := &cluster.Move{Spec: cluster.MoveSpec{From: "7vd9amwmcseg15vb3rqvisntq", To: "dj4xvqypup0uh9w9czhsd7ini"}}
	o.Status.Message = "node 7vd9amwmcseg15vb3rqvisntq: node 9s82gjdmk15opjbs9a1svokf0 does not answer (x1, gone)"
	got := show(s.View(), o)
	if got.From.Name != "east" || got.To.Name != o.Spec.To || got.Message != "node east: node 9s82gjdmk15opjbs9a1svokf0 does not answer (x1, gone)" {
		t.Errorf("%+v", got)
	}
}
