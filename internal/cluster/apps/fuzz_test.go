package apps

import (
	"encoding/json"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/reconcile/allocate"
	"escale.dev/escale/internal/cluster/reconcile/app"
	"escale.dev/escale/internal/cluster/reconcile/cron"
	"escale.dev/escale/internal/cluster/reconcile/depend"
	"escale.dev/escale/internal/cluster/reconcile/enforce"
	"escale.dev/escale/internal/cluster/reconcile/global"
	"escale.dev/escale/internal/cluster/reconcile/job"
	"escale.dev/escale/internal/cluster/reconcile/reaper"
	"escale.dev/escale/internal/cluster/reconcile/replicated"
	"escale.dev/escale/internal/cluster/reconcile/restart"
	"escale.dev/escale/internal/cluster/reconcile/update"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
)

// decideAll asks each loop once about all there is and does what it wants.
func decideAll(t *testing.T, s store.Store) {
	t.Helper()
	for _, l := range []loop.Loop{
		app.Loop{}, replicated.Loop{}, global.Loop{}, job.Loop{}, cron.Loop{}, depend.Loop{}, restart.Loop{}, update.Loop{}, enforce.Loop{}, reaper.Loop{}, allocate.Loop{},
	} {
		for _, key := range l.All(s.View()) {
			d := l.Decide(s.View(), key, time.Unix(1e9, 0))
			for len(d.Changes) > 0 {
				n := min(len(d.Changes), store.MaxChanges)
				if _, err := s.Commit(t.Context(), d.Changes[:n]...); err != nil {
					t.Fatalf("loop %s: %v", l.Name(), err)
				}
				d.Changes = d.Changes[n:]
			}
		}
	}
}

// FuzzPut asks for what may be an app, of none and of one that is there. What is refused
// leaves nothing behind; what is not can be told of, is the same when it is asked for
// again, and does no loop any harm.
func FuzzPut(f *testing.F) {
	for _, seed := range []string{
		`null`, `{}`, `{"Services":{"a":null}}`, `{"Services":{"web":{"Task":{"Container":null}}}}`,
		`{"Services":{"web":{"Mode":{"Replicated":{"Replicas":2}},"Task":{"Container":{"Image":"a"},"Host":{}}}}}`,
		`{"Services":{"web":{"Mode":{"Global":true},"Task":{"Container":{"Image":"a","Labels":{}},"Host":{"Mounts":[{"Type":"volume","Source":"v"}]},"Needs":[{"Service":"shop_db","Condition":"service_healthy","Restart":true}]},"Ports":[{"Proto":"tcp","Target":80}]},"db":{"Mode":{"Job":{"Total":1,"Concurrent":9}},"Task":{"Container":{"Image":"b"},"Host":{}}}},"Volumes":{"v":{"Name":"v"}}}`,
		`{"Services":{"web":{"Mode":{"Job":{"Total":1},"Schedule":"* * * * *"},"Task":{"Container":{"Image":"a"},"Host":{},"Secrets":[{"Name":"k","Target":"/k"}]}}},"Secrets":{"k":{"Data":"aGk="}},"Networks":{"n":{"Name":"x","Create":{"Labels":{}}}}}`,
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, merge bool) {
		var asked cluster.AppSpec
		if json.Unmarshal(body, &asked) != nil {
			return
		}
		for _, s := range asked.Services { // many tasks take long, and show nothing more
			if m := s.Mode.Replicated; m != nil && m.Replicas > 50 && m.Replicas <= maxReplicas || s.Mode.Job != nil && s.Mode.Job.Total > 50 && s.Mode.Job.Total <= maxReplicas {
				return
			}
		}
		for _, there := range []bool{false, true} {
			s := mem.New(store.NewState())
			a := New(s, nil)
			if there {
				if _, err := a.Put(t.Context(), "shop", spec(map[string]cluster.ServiceSpec{"web": service("a", 1)}), Put{}); err != nil {
					t.Fatal(err)
				}
				decideAll(t, s)
			}
			revision := s.View().Revision()
			o := Put{Merge: merge, Remove: []string{"none"}}
			if _, err := a.Put(t.Context(), "shop", asked, o); err != nil {
				if s.View().Revision() != revision {
					t.Errorf("refused (%v), and written", err)
				}
				continue
			}
			for range 3 {
				decideAll(t, s)
			}
			if _, err := a.Get("shop"); err != nil {
				t.Error(err)
			}
			var again cluster.AppSpec
			_ = json.Unmarshal(body, &again)
			o.DryRun = true
			if p, err := a.Put(t.Context(), "shop", again, o); err != nil || p.From != p.To {
				t.Errorf("asked again: %+v, %v", p, err)
			}
			if err := a.Remove(t.Context(), "shop", true); err != nil {
				t.Error(err)
			}
			decideAll(t, s)
			_ = s.Close()
		}
	})
}
