package cluster

import (
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// Volumes on storage that nodes share, by the local driver's options or by a driver that is a plugin,
// keep a task nowhere; those that exist on one node do.
func TestSharedVolumes(t *testing.T) {
	with := func(source, driver string, options map[string]string) mount.Mount {
		m := mount.Mount{Type: mount.TypeVolume, Source: source, Target: "/" + source}
		if driver != "" || options != nil {
			m.VolumeOptions = &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: driver, Options: options}}
		}
		return m
	}
	next := func(list ...mount.Mount) *Home {
		old := &Task{Slot: 1, Node: "n1", Spec: TaskSpec{Host: &container.HostConfig{Mounts: list}}, Status: TaskStatus{RunningAt: time.Unix(1, 0)}}
		return old.Successor(old.Spec, 1).Bound()
	}
	for _, m := range []mount.Mount{
		with("a", "local", map[string]string{"type": "nfs", "o": "addr=192.0.2.1", "device": ":/x"}), with("a", "", map[string]string{"type": "nfs4"}),
		with("a", "local", map[string]string{"type": "cifs"}), with("a", "cloud", nil), with("a", "vieux/sshfs:latest", map[string]string{"sshcmd": "x"}),
		{Type: mount.TypeBind, Source: "/srv"}, {Type: mount.TypeTmpfs}, {Type: mount.TypeVolume, Target: "/anonymous"},
	} {
		if h := next(m); h != nil {
			t.Errorf("%+v keeps its task on %s", m, h.Node)
		}
	}
	for _, m := range []mount.Mount{with("a", "", nil), with("a", "local", nil), with("a", "local", map[string]string{"type": "none", "o": "bind", "device": "/srv"}), with("a", "", map[string]string{"type": "tmpfs"})} {
		if h := next(m, with("far", "cloud", nil)); h == nil || h.Node != "n1" || !slices.Equal(h.Volumes, []string{"a"}) {
			t.Errorf("%+v: %+v", m, h)
		}
	}
}

// A place whose volumes were moved is where they are, also when its task has ended before.
func TestHomeThatMoved(t *testing.T) {
	old := &Task{
		Slot: 1, Node: "n1", Spec: TaskSpec{Host: &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "a"}}}},
		Status: TaskStatus{State: TaskFailed, RunningAt: time.Unix(1, 0)}, Home: &Home{Node: "n2", Volumes: []string{"a"}, Moved: true},
	}
	next := old.Successor(old.Spec, 1)
	if next.Home == nil || next.Home.Node != "n2" || next.Home.Moved {
		t.Fatalf("%+v", next.Home)
	}
	next.Node, next.Status.RunningAt = "n2", time.Unix(2, 0)
	if h := next.Successor(next.Spec, 1).Home; h == nil || h.Node != "n2" {
		t.Errorf("%+v", h)
	}
}
