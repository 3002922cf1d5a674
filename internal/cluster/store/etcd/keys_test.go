package etcd

import (
	"encoding/json"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// following is a store without a server, which only applies.
func following() *Store {
	return &Store{cfg: Config{Name: "m1"}, keys: keys{prefix: "p"}, state: store.NewState(), moved: make(chan struct{})}
}

// write is an event of a key.
func write(key, value string, rev int64) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: rev}}
}

// Writes that are none of ours are refused as a whole, with words; what a later version calls a
// kind is passed over; what is known already is not applied again.
func TestApply(t *testing.T) {
	web, err := json.Marshal(&cluster.Service{Meta: cluster.Meta{ID: "x", Name: "web", Revision: 1}})
	if err != nil {
		t.Fatal(err)
	}
	const first = `{"Format":1,"Revision":1,"Batch":"b","Commits":[{"Revision":1,"Writes":["service/x"]}]}`
	for name, c := range map[string]struct {
		head string // "": none is written
		kind func(error) bool
		left uint64 // the revision that it leads to
	}{
		"good":                {first, nil, 1},
		"a kind to come":      {`{"Format":1,"Revision":1,"Commits":[{"Revision":1,"Writes":["service/x","wonder/w","-wonder/v"]}]}`, nil, 1},
		"an unwritten kind":   {`{"Format":1,"Revision":1,"Commits":[{"Revision":1,"Writes":["service/x","wonder/u"]}]}`, errdefs.IsDataLoss, 0},
		"no head":             {"", errdefs.IsDataLoss, 0},
		"a head in halves":    {first[:40], errdefs.IsDataLoss, 0},
		"a later format":      {strings.Replace(first, `"Format":1`, `"Format":2`, 1), errdefs.IsFailedPrecondition, 0},
		"a gap":               {strings.ReplaceAll(first, `"Revision":1`, `"Revision":2`), errdefs.IsDataLoss, 0},
		"another revision":    {strings.Replace(first, `"Revision":1`, `"Revision":2`, 1), errdefs.IsDataLoss, 0},
		"another object":      {strings.Replace(first, "service/x", "service/y", 1), errdefs.IsDataLoss, 0},
		"another kind":        {strings.Replace(first, "service/x", "task/z", 1), errdefs.IsDataLoss, 0},
		"removed, not there":  {strings.Replace(first, "service/x", "-service/x", 1), errdefs.IsDataLoss, 0},
		"nobody's name":       {strings.Replace(first, "service/x", "", 1), errdefs.IsDataLoss, 0},
		"begun to carry over": {`{"Format":1,"Revision":0,"Carrying":"host"}`, errdefs.IsUnavailable, 0},
	} {
		s := following()
		events := []*clientv3.Event{write("p/s/o/service/x", string(web), 7), write("p/s/o/wonder/w", "?", 7)}
		if c.head != "" {
			events = append(events, write("p/s/head", c.head, 7))
		}
		err := s.apply(events)
		if (c.kind == nil) != (err == nil) || c.kind != nil && !c.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
		if at := s.View().Revision(); at != c.left {
			t.Errorf("%s: led to revision %d", name, at)
		}
		if err == nil {
			if err := s.apply(events); err != nil || s.View().Revision() != c.left {
				t.Errorf("%s, again: %v", name, err)
			}
		}
	}
}

// Any head and any object are applied, or refused by a kind and leave all as it was.
func FuzzApply(f *testing.F) {
	f.Add(`{"Format":1,"Revision":1,"Commits":[{"Revision":1,"Writes":["service/x"]}]}`, "p/s/o/service/x", `{"ID":"x","Name":"web"}`)
	f.Add(`{"Format":1,"Revision":2,"Commits":[{"Revision":1,"Writes":["task/x","-"]},{"Revision":2,"Writes":["-task/x",""]}]}`, "p/s/o/task/x", `{"ID":"x"}`)
	f.Add(`{"Format":2}`, "p/s/o//", "")
	f.Fuzz(func(t *testing.T, head, key, value string) {
		s := following()
		err := s.apply([]*clientv3.Event{write(key, value, 3), write("p/s/head", head, 3)})
		if err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) && !errdefs.IsUnavailable(err) {
			t.Errorf("an error of no kind: %v", err)
		}
		if err != nil && s.View().Revision() != 0 {
			t.Errorf("refused, and at revision %d", s.View().Revision())
		}
	})
}
