package swarm

import (
	"fmt"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// labelled is a service whose containers have a label.
func labelled(name, value string) swarm.ServiceSpec {
	s := web()
	s.TaskTemplate.ContainerSpec.Labels = map[string]string{name: value}
	return s
}

func TestRights(t *testing.T) {
	for _, c := range []struct{ label, value, want string }{
		{labelPrivileged, "true", "true []"},
		{labelPrivileged, "0", "false []"},
		{labelDevices, "/dev/fuse", "false [{/dev/fuse /dev/fuse rwm}]"},
		{labelDevices, "/dev/a:/dev/b:r, /dev/c:rw,/dev/d:/e", "false [{/dev/a /dev/b r} {/dev/c /dev/c rw} {/dev/d /e rwm}]"},
		{labelDevices, "", "false []"},
		{labelPrivileged, "yes please", ""},
		{labelDevices, "fuse", ""},
		{labelDevices, "/dev/../etc/x", ""},
		{labelDevices, "/dev/a:/b:/c", ""},
		{labelDevices, "/dev/a:/b:rr", ""},
		{labelDevices, "/dev/a:", ""},
		{labelDevices, "/", ""},
	} {
		s := labelled(c.label, c.value)
		spec, err := toSpec(&s)
		if c.want == "" {
			wants(t, err, errdefs.IsInvalidArgument, "label "+c.label)
		} else if got := fmt.Sprint(spec.Task.Host.Privileged, spec.Task.Host.Devices); err != nil || got != c.want {
			t.Errorf("%s=%s: %s %v", c.label, c.value, got, err)
		}
	}
}

// What Docker's services cannot have, these have if the swarm permits it.
func TestPermit(t *testing.T) {
	r := newRig(t).init()
	ctx := t.Context()
	permit := func(what string) error {
		is, err := r.Inspect()
		if err != nil {
			t.Fatal(err)
		}
		is.Spec.Labels = map[string]string{labelPermit: what}
		return r.Update(ctx, is.Version.Index, is.Spec, Rotate{})
	}
	_, _, err := r.CreateService(ctx, labelled(labelPrivileged, "true"), Asked{})
	wants(t, err, errdefs.IsPermissionDenied, `its label escale.permit has to name "privileged"`)
	wants(t, permit("devices,root"), errdefs.IsInvalidArgument, `"root" is none of`)
	if err := permit("devices"); err != nil {
		t.Fatal(err)
	}
	_, _, err = r.CreateService(ctx, labelled(labelPrivileged, "true"), Asked{})
	wants(t, err, errdefs.IsPermissionDenied, "label escale.privileged: this swarm does not permit")
	if _, _, err = r.CreateService(ctx, labelled(labelDevices, "/dev/fuse"), Asked{}); err != nil {
		t.Fatal(err)
	}
	err = r.change("web", Asked{}, func(s *swarm.ServiceSpec) {
		s.TaskTemplate.ContainerSpec.Labels = map[string]string{labelPrivileged: "true"}
	})
	wants(t, err, errdefs.IsPermissionDenied, "privileged")
	if err = r.change("web", Asked{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Labels = nil }); err != nil {
		t.Fatal(err)
	}
	// Nor does anybody go back to it once it is permitted no more.
	if err := permit(""); err != nil {
		t.Fatal(err)
	}
	is, _ := r.GetService("web", false)
	_, err = r.UpdateService(ctx, "web", is.Version.Index, is.Spec, Asked{Rollback: true})
	wants(t, err, errdefs.IsPermissionDenied, `its label escale.permit has to name "devices"`)
}

// A job with a schedule is done when it is due, and not because somebody changes it.
func TestScheduled(t *testing.T) {
	r := newRig(t).init()
	s := web()
	s.Labels = map[string]string{labelSchedule: "*/5 * * * *"}
	_, _, err := r.CreateService(t.Context(), s, Asked{})
	wants(t, err, errdefs.IsInvalidArgument, "only jobs can have a schedule")
	s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{}}
	s.Labels[labelSchedule] = "TZ=UTC"
	_, _, err = r.CreateService(t.Context(), s, Asked{})
	wants(t, err, errdefs.IsInvalidArgument, "label escale.schedule: schedule \"TZ=UTC\"")
	s.Labels[labelSchedule] = "*/5 * * * *"
	if _, _, err := r.CreateService(t.Context(), s, Asked{}); err != nil {
		t.Fatal(err)
	}
	get := func() *cluster.Service {
		o, err := store.Named[*cluster.Service](r.Store.View(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return store.Copy(o)
	}
	o := get()
	if o.Spec.Mode.Schedule != "*/5 * * * *" || o.Spec.Mode.Job.Total != 1 {
		t.Errorf("%+v", o.Spec.Mode)
	}
	o.Status.Due = time.Unix(2e9, 0)
	r.commit(store.Update(o))
	for n, c := range []struct {
		f      func(*swarm.ServiceSpec)
		number uint64
		kept   bool
	}{
		{func(s *swarm.ServiceSpec) {}, 1, true},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "other" }, 2, true},
		{func(s *swarm.ServiceSpec) { s.Labels = map[string]string{labelSchedule: "@daily"} }, 2, false},
		{func(s *swarm.ServiceSpec) { s.Labels = nil }, 3, false},
	} {
		if err := r.change("web", Asked{}, c.f); err != nil {
			t.Fatal(err)
		}
		if o := get(); o.Spec.Number != c.number || o.Status.Due.IsZero() == c.kept {
			t.Errorf("%d: number %d, due %s", n, o.Spec.Number, o.Status.Due)
		}
	}
}
