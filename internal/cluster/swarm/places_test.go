package swarm

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// The container of a task is found by all names that people have for it.
func TestFindTask(t *testing.T) {
	r := newRig(t)
	hex := func(s string) string { return s + strings.Repeat("0", 64-len(s)) }
	add := func(id, name, of string, state cluster.TaskState, at int) {
		task := &cluster.Task{Meta: cluster.Meta{ID: id, Name: name, CreatedAt: time.Unix(int64(at), 0)}, Node: "n2", Status: cluster.TaskStatus{State: state}}
		task.Spec.Container = &container.Config{}
		if of != "" {
			task.Status.Container = &cluster.ContainerStatus{ID: of}
		}
		if id == "app1" {
			task.Spec.Name = "shop-web-1"
		}
		r.commit(store.Create(task))
	}
	add("old1xyz", "web.1", hex("c0f1"), cluster.TaskShutdown, 1)
	add("run2xyz", "web.1", hex("c0f2"), cluster.TaskRunning, 2)
	add("new3xyz", "web.1", hex("d0f3"), cluster.TaskFailed, 3)
	add("none4xyz", "web.2", "", cluster.TaskPending, 4)
	add("old5xyz", "web.3", hex("e0f5"), cluster.TaskFailed, 5)
	add("new6xyz", "web.3", hex("e0f6"), cluster.TaskFailed, 6)
	add("app1", "shop_web.1", hex("f0f7"), cluster.TaskRunning, 7)
	for ref, want := range map[string]string{
		"web.1": "run2xyz", "web.1.old1xyz": "old1xyz", "new3xyz": "new3xyz", "run2": "run2xyz", "web.3": "new6xyz", hex("c0f1"): "old1xyz", "c0f1": "old1xyz", "d0f": "new3xyz",
		"shop-web-1": "app1", "shop_web.1": "app1",
	} {
		if got, err := r.FindTask(ref); err != nil || got.ID != want {
			t.Errorf("%s: %v, %v; want %s", ref, got, err, want)
		}
	}
	for _, ref := range []string{"", "web", "web.2", "none4xyz", "d0", "zzz", "web.1.run2"} {
		if got, err := r.FindTask(ref); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v, %v", ref, got, err)
		}
	}
	_, err := r.FindTask("c0f")
	wants(t, err, errdefs.IsInvalidArgument, "multiple IDs found with provided prefix: c0f")
}

// Logs of tasks of other nodes are read as those here; nodes that cannot be reached are told
// of once all that can be read is.
func TestLogsOfOtherNodes(t *testing.T) {
	r := newRig(t).init()
	id, _, err := r.CreateService(t.Context(), web(), Asked{})
	if err != nil {
		t.Fatal(err)
	}
	line := func(at int64, text string) logs.Line {
		return logs.Line{Time: time.Unix(at, 0), Stream: "stdout", Data: []byte(text)}
	}
	r.paper.logs["one"], r.paper.logs["two"] = []logs.Line{line(1, "a"), line(3, "c")}, []logs.Line{line(2, "b")}
	at := func(slot uint64, node, container string) {
		o, _ := store.Find[*cluster.Service](r.Store.View(), id)
		task := o.First(slot, "")
		task.Node, task.Status = node, cluster.TaskStatus{State: cluster.TaskComplete, Container: &cluster.ContainerStatus{ID: container}}
		r.commit(store.Create(task))
	}
	at(1, "node1", "one")
	at(2, "node2", "two")
	read := func(o logs.ReadOptions) (out []string, _ error) {
		l, _, err := r.ServiceLogs(t.Context(), "web", o)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if o.Follow { // it ends with the service
			s, _ := store.Find[*cluster.Service](r.Store.View(), id)
			defer func() {
				r.commit(store.Create(&cluster.Service{Meta: cluster.Meta{ID: id, Name: "web"}, Spec: s.Spec}))
			}()
			r.commit(store.Delete(s))
		}
		for {
			next, err := l.Next()
			if err != nil {
				return out, err
			}
			out = append(out, next.Attrs[attrNode]+string(next.Data))
		}
	}
	if got, err := read(logs.ReadOptions{}); strings.Join(got, " ") != "node1a node2b node1c" || err != io.EOF {
		t.Errorf("%v, %v", got, err)
	}
	at(3, "dead", "x")
	at(4, "dead", "y")
	const words = "warning: incomplete log stream. some logs could not be retrieved for the following reasons: node dead is not available"
	for _, follow := range []bool{false, true} {
		got, err := read(logs.ReadOptions{Follow: follow})
		if len(got) != 3 || err == nil || err.Error() != words {
			t.Errorf("follow %v: %v, %v", follow, got, err)
		}
	}
	// One that disconnects in the middle.
	r.paper.broken = errdefs.ErrUnavailable.WithMessage("node node2 disconnected unexpectedly")
	if _, err := read(logs.ReadOptions{}); err == nil || !strings.Contains(err.Error(), "node2") || errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
