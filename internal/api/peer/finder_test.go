package peer

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// holder has one image, under whatever name.
type holder struct {
	nothing
	id    digest.Digest
	asked atomic.Int32
	wait  time.Duration
}

func (h *holder) Find(ctx context.Context, w image.Wanted) (image.Held, error) {
	h.asked.Add(1)
	select {
	case <-time.After(h.wait):
	case <-ctx.Done():
	}
	if w.ID != "" && w.ID != h.id || w.Digest != "" {
		return image.Held{}, fmt.Errorf("image: %w", errdefs.ErrNotFound)
	}
	d := ocispec.Descriptor{Digest: h.id, Size: 1}
	return image.Held{ID: h.id, Manifest: d, Top: d}, nil
}

func nodesOf(f Found) string {
	var out []string
	for _, p := range f.Places {
		out = append(out, p.Node)
	}
	return strings.Join(out, " ")
}

// By its id an image is whosever it is; by a name the managers' counts, and the workers' only
// if they agree.
func TestFinder(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	byName := image.Wanted{Name: pulledAs}
	for _, c := range []struct {
		what              string
		managers, workers []digest.Digest // of what they have
		dead              int             // workers that are not there
		want              image.Wanted
		id                digest.Digest
		places            int
		is                func(error) bool
	}{
		{what: "one worker has it", managers: []digest.Digest{""}, workers: []digest.Digest{"", b, ""}, want: image.Wanted{ID: b}, id: b, places: 1},
		{what: "all have it", managers: []digest.Digest{a, a}, workers: []digest.Digest{a, a}, want: image.Wanted{ID: a}, id: a, places: 2},
		{what: "a manager's name", managers: []digest.Digest{a}, workers: []digest.Digest{b}, want: byName, id: a, places: 1},
		{what: "workers' name", managers: []digest.Digest{""}, workers: []digest.Digest{b, b}, want: byName, id: b, places: 2},
		{what: "workers do not agree", workers: []digest.Digest{b, a}, want: byName, is: errdefs.IsConflict},
		{what: "managers do not agree", managers: []digest.Digest{b, a}, workers: []digest.Digest{a}, want: byName, is: errdefs.IsConflict},
		{what: "nobody has it", managers: []digest.Digest{a}, workers: []digest.Digest{b}, want: image.Wanted{ID: someID}, is: errdefs.IsNotFound},
		{what: "some are dead", managers: []digest.Digest{""}, workers: []digest.Digest{b}, dead: 2, want: image.Wanted{ID: b}, id: b, places: 1},
		{what: "who may have it is dead", dead: 1, want: image.Wanted{ID: b}, is: errdefs.IsUnavailable},
		{what: "nonsense", want: image.Wanted{}, is: errdefs.IsInvalidArgument},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newSite(t)
			k := Known{All: true}
			add := func(list *[]string, role ca.Role, has []digest.Digest) {
				for i, id := range has {
					name := fmt.Sprintf("%c%d", role[6], i)
					*list = append(*list, name)
					cfg := Config{}
					if id != "" {
						cfg.Images = &holder{id: id}
					}
					s.node(name, role, cfg)
				}
			}
			add(&k.Managers, ca.Manager, c.managers)
			add(&k.Workers, ca.Worker, c.workers)
			for i := range c.dead {
				k.Workers = append(k.Workers, fmt.Sprintf("dead%d", i))
			}
			f := NewFinder(s.dialer(s.keeper("me", "c1", ca.Manager)), func() Known { return k })
			got, err := f.Find(t.Context(), c.want)
			if c.is != nil {
				if !c.is(err) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err != nil || got.ID != c.id || len(got.Places) != c.places {
				t.Errorf("%s on %s, %v; want %s on %d", got.ID, nodesOf(got), err, c.id, c.places)
			}
		})
	}
}

// A worker asks a manager, the next one when that does not answer, and finds nodes that it
// did not know. Many who ask the same are one.
func TestFinderOfWorker(t *testing.T) {
	s := newSite(t)
	a := digest.FromString("a")
	has := &holder{id: a, wait: 50 * time.Millisecond}
	s.node("w1", ca.Worker, Config{Images: has})
	manager := s.dialer(s.keeper("m1", "c1", ca.Manager))
	all := NewFinder(manager, func() Known { return Known{Workers: []string{"w1"}, All: true} })
	s.node("m1", ca.Manager, Config{Holders: all.Find})
	s.node("m2", ca.Manager, Config{}) // has just become one
	k := s.keeper("w2", "c1", ca.Worker)
	d := NewDialer(k, func(node string) (string, bool) {
		if node[0] != 'm' {
			return "", false
		}
		return s.addrOf(node)
	})
	t.Cleanup(d.Close)
	f := NewFinder(d, func() Known { return Known{Managers: []string{"m3", "m2", "m1"}} })
	found := make(chan string, 20)
	for range cap(found) {
		go func() {
			got, err := f.Find(t.Context(), image.Wanted{ID: a})
			found <- fmt.Sprintf("%v %s %v", got.ID == a, nodesOf(got), err)
		}()
	}
	for range cap(found) {
		if got := <-found; got != "true w1 <nil>" {
			t.Error(got)
		}
	}
	if n := has.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, err := d.Has(t.Context(), "w1", image.Wanted{ID: a}); err != nil {
		t.Errorf("where the manager says: %v", err)
	}
	if _, err := f.Find(t.Context(), image.Wanted{ID: someID}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	none := NewFinder(d, func() Known { return Known{} })
	if _, err := none.Find(t.Context(), image.Wanted{ID: a}); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := none.Find(ctx, image.Wanted{ID: someID}); err == nil {
		t.Error("found for one who does not wait")
	}
}

// A manager that was taken over cannot send a worker anywhere, nor make it believe more than
// where to ask.
func TestHostileManager(t *testing.T) {
	s := newSite(t)
	a := digest.FromString("a")
	var says Found
	s.node("m1", ca.Manager, Config{Holders: func(context.Context, image.Wanted) (Found, error) { return says, nil }})
	d := s.dialer(s.keeper("w2", "c1", ca.Worker))
	held := image.Held{ID: a, Manifest: ocispec.Descriptor{Digest: a}, Top: ocispec.Descriptor{Digest: a}}
	many := make([]Place, 1000)
	for i := range many {
		many[i] = Place{Node: fmt.Sprint("n", i), Addr: "192.0.2.1:1", ID: a}
	}
	for what, f := range map[string]Found{
		"nobody":        {Held: held},
		"no nodes":      {Held: held, Places: []Place{{Node: "a/b", ID: a}, {Node: "", ID: a}, {Node: "n", ID: "x"}}},
		"another image": {Held: image.Held{ID: someID, Manifest: held.Manifest, Top: held.Top}, Places: many[:1]},
		"no image":      {Places: many[:1]},
	} {
		says = f
		if _, err := d.Holders(t.Context(), "m1", image.Wanted{ID: a}); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	says = Found{held, many}
	got, err := d.Holders(t.Context(), "m1", image.Wanted{ID: a})
	if err != nil || len(got.Places) != MaxPlaces {
		t.Errorf("%d, %v", len(got.Places), err)
	}
	says = Found{held, append(many, many...)}
	for range 10 {
		says.Places = append(says.Places, says.Places...)
		if len(says.Places) > 10_000 {
			break
		}
	}
	if _, err := d.Holders(t.Context(), "m1", image.Wanted{ID: a}); !errdefs.IsDataLoss(err) {
		t.Errorf("a very long answer: %v", err)
	}
}
