package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// What a newer version has written, and this one does not know, is kept when this
// one writes; what this one has removed is gone.
func TestUnknownFieldsAreKept(t *testing.T) {
	s := NewState()
	raw := `{"ID":"x","Name":"web","Revision":4,"CreatedAt":"2026-01-01T00:00:00Z","UpdatedAt":"2026-01-01T00:00:00Z","Labels":{"a":"1"},
		"Spec":{"Mode":{"Replicated":{"Replicas":2,"Later":[1,2]}},"Number":3,"Future":{"n":12345678901234567890}},"Status":{},"Tail":"kept"}`
	if err := s.Fill(4, []Write{{cluster.KindService, "x", json.RawMessage(raw)}}); err != nil {
		t.Fatal(err)
	}
	o, err := Find[*cluster.Service](s.View(), "x")
	if err != nil {
		t.Fatal(err)
	}
	o = Copy(o)
	o.Labels, o.Spec.Number = nil, 5
	g := s.Stage()
	if _, err := g.Add([]Change{Update(o)}); err != nil {
		t.Fatal(err)
	}
	writes, at := g.Writes()
	g.Apply()
	var got struct {
		Labels map[string]string
		Tail   string
		Spec   struct {
			Number uint64
			Future json.RawMessage
			Mode   struct{ Replicated struct{ Later []int } }
		}
	}
	if err := json.Unmarshal(writes[0].Raw, &got); err != nil {
		t.Fatal(err)
	}
	if at != 5 || got.Tail != "kept" || got.Spec.Number != 5 || string(got.Spec.Future) != `{"n":12345678901234567890}` || len(got.Spec.Mode.Replicated.Later) != 2 || got.Labels != nil {
		t.Errorf("at %d: %s", at, writes[0].Raw)
	}
}

// Commits that are staged and aborted were never there; one that is refused takes
// no other with it.
func TestStage(t *testing.T) {
	s := NewState()
	g := s.Stage()
	if _, err := g.Add([]Change{Create(&cluster.Task{})}); err != nil {
		t.Fatal(err)
	}
	g.Abort()
	if n := len(List[*cluster.Task](s.View())); n != 0 || s.Revision() != 0 {
		t.Errorf("%d tasks at revision %d", n, s.Revision())
	}
	g = s.Stage()
	web := &cluster.Service{Meta: cluster.Meta{Name: "web"}}
	if at, err := g.Add([]Change{Create(web)}); at != 1 || err != nil {
		t.Fatal(at, err)
	}
	if _, err := g.Add([]Change{Create(&cluster.Task{}), Create(&cluster.Service{Meta: cluster.Meta{Name: "web"}})}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a name of the same stage: %v", err)
	}
	if at, err := g.Add([]Change{Delete(web)}); at != 2 || err != nil {
		t.Errorf("removed in the same stage: %d, %v", at, err)
	}
	g.Apply()
	if n := len(List[*cluster.Task](s.View())); n != 0 || s.Revision() != 2 {
		t.Errorf("%d tasks at revision %d", n, s.Revision())
	}
}

// Any bytes are read as saved objects or refused, and what is read is saved as it was.
func FuzzLoad(f *testing.F) {
	var b bytes.Buffer
	s := NewState()
	g := s.Stage()
	_, err := g.Add([]Change{Create(&cluster.Service{Meta: cluster.Meta{Name: "web"}}), Create(&cluster.Task{}), Create(&cluster.Secret{Meta: cluster.Meta{Name: "s"}})})
	g.Apply()
	if err := errors.Join(err, Save(&b, s.View())); err != nil {
		f.Fatal(err)
	}
	f.Add(b.String())
	f.Add(strings.Replace(b.String(), `"Kind":"task"`, `"Kind":"nonsense"`, 1))
	f.Add("{}\n{}")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Load(strings.NewReader(text))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		var b, c bytes.Buffer
		if err := Save(&b, s.View()); err != nil {
			t.Fatal(err)
		}
		again, err := Load(bytes.NewReader(b.Bytes()))
		if err == nil {
			err = Save(&c, again.View())
		}
		if err != nil || !bytes.Equal(b.Bytes(), c.Bytes()) {
			t.Errorf("%v\n%s\n%s", err, b.Bytes(), c.Bytes())
		}
	})
}
