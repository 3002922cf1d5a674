package container

import (
	"testing"
	"testing/synctest"
)

// A container stays in the cgroup that its start put it into, whatever a later engine would do.
func TestCgroupOfTheStart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		first := f.manager(t, dir)
		d := *first.defaults()
		d.Scopes, d.CgroupParent = "docker", "system.slice"
		first.SetDefaults(d)
		id := create(t, first, "one", nil)
		if err := first.Start(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		scope, path := "system.slice:docker:"+string(id), "/system.slice/docker-"+string(id)+".scope"
		if got := f.tasks[string(id)].launch.CgroupPath; got != scope {
			t.Errorf("launched in %s, want %s", got, scope)
		}
		first.Close()

		second := f.manager(t, dir) // makes cgroups itself
		defer second.Close()
		v, err := second.Get("one")
		if err != nil {
			t.Fatal(err)
		}
		if got := second.cgroupPath(&v.Record); got != path {
			t.Errorf("looked for at %s, want %s", got, path)
		}
		if got := second.cleanup(&v.Record, v.State.Generation).CgroupPath; got != scope {
			t.Errorf("cleaned up at %s, want %s", got, scope)
		}
		// An engine that did not note it: the bundle knows.
		e, err := second.store.find("one")
		if err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		e.rec.State.Cgroup = ""
		rec := e.rec
		e.mu.Unlock()
		recovery{second.runner}.findCgroup(e, &rec)
		if got := e.view().State.Cgroup; got != scope || rec.State.Cgroup != scope {
			t.Errorf("found %s, want %s", got, scope)
		}
		if err := second.Restart(t.Context(), "one", Stop{}); err != nil {
			t.Fatal(err)
		}
		if got := f.tasks[string(id)].launch.CgroupPath; got != "/docker/"+string(id) {
			t.Errorf("started anew in %s", got)
		}
		f.end(id, 0)
		synctest.Wait()
	})
}
