package executor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// engine has containers that are made up, and says what was asked of it.
type engine struct {
	list   []*made
	asked  []string
	health []container.HealthStatus // that a wait sees, one after the other
	broken error                    // of the next Create
	codes  map[string]int           // of hooks, by their commands
	took   time.Duration            // each hook
	inUse  func() bool              // networks that are to be made anew
}

// made is a container that is made up.
type made struct {
	Container
	config   *container.Config
	host     *container.HostConfig
	networks map[string]*network.EndpointSettings
	policy   container.RestartPolicy
	request  Request
	runs     bool
}

func (e *engine) note(format string, args ...any) {
	e.asked = append(e.asked, fmt.Sprintf(format, args...))
}

func (e *engine) get(id string) (*made, error) {
	for _, m := range e.list {
		if m.ID == id {
			return m, nil
		}
	}
	return nil, errdefs.ErrNotFound
}

func (e *engine) Create(_ context.Context, r Request) (string, error) {
	name := r.Name
	if e.broken != nil {
		return "", e.broken
	}
	for _, m := range e.list {
		if m.Name == name {
			return "", fmt.Errorf("name %s: %w", name, errdefs.ErrConflict)
		}
	}
	id := fmt.Sprintf("%064d", len(e.asked))
	e.list = append(e.list, &made{Container: Container{ID: id, Name: name, Labels: r.Config.Labels, Task: r.Task, Node: r.Node}, config: r.Config, host: r.Host, networks: r.Networks, policy: r.Restart, request: r})
	e.note("create %s", name)
	return id, nil
}

func (e *engine) Start(_ context.Context, id string) error {
	m, err := e.get(id)
	if err == nil {
		m.runs, m.PID = true, 7
		e.note("start %s", m.Name)
	}
	return err
}

func (e *engine) Stop(_ context.Context, id string, grace time.Duration) error {
	m, err := e.get(id)
	if err == nil {
		m.runs, m.PID = false, 0
		e.note("stop %s in %s", m.Name, grace)
	}
	return err
}

func (e *engine) Exec(ctx context.Context, id string, h cluster.Hook, timeout time.Duration) (int, string, error) {
	m, err := e.get(id)
	if err != nil {
		return 0, "", err
	}
	e.note("exec %s in %s within %s", strings.Join(h.Command, " "), m.Name, timeout)
	if !m.runs {
		return 0, "", errdefs.ErrConflict
	}
	took := e.took
	if timeout > 0 && took > timeout {
		took, err = timeout, context.DeadlineExceeded
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
	return e.codes[h.Command[0]], "said\n", err
}

func (e *engine) Remove(_ context.Context, id string) error {
	m, err := e.get(id)
	if err == nil {
		e.note("remove %s", m.Name)
		e.list = slices.DeleteFunc(e.list, func(o *made) bool { return o == m })
	}
	return err
}

func (e *engine) Rename(_ context.Context, id, name string) error {
	m, err := e.get(id)
	if err == nil {
		m.Name = name
	}
	return err
}

func (e *engine) Wait(ctx context.Context, _ string, health func(container.HealthStatus)) (int, error) {
	for _, h := range e.health {
		health(h)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return 5, nil
}

func (e *engine) Of(_ context.Context, task string) (Container, error) {
	for _, m := range e.list {
		if m.Task == task {
			return m.Container, nil
		}
	}
	return Container{}, errdefs.ErrNotFound
}

func (e *engine) Kept(context.Context) (out []Container, _ error) {
	for _, m := range e.list {
		if m.Task != "" {
			out = append(out, m.Container)
		}
	}
	return out, nil
}

func (e *engine) Release(_ context.Context, id string) error {
	m, err := e.get(id)
	if err == nil {
		m.Task, m.Node = "", ""
		e.note("release %s", m.Name)
	}
	return err
}

func (e *engine) Sweep(_ context.Context, kept func(string) bool) error {
	for _, task := range []string{"t1", "t9"} {
		if !kept(task) {
			e.note("sweep %s", task)
		}
	}
	return nil
}

func (e *engine) Image(_ context.Context, w Image) (string, error) {
	e.note("image %s", strings.Join(strings.Fields(w.Name+" "+w.ID+" "+w.Policy), " "))
	if w.Name == "missing" {
		return "", errors.New("No such image: missing")
	}
	if w.ID == "missing" {
		return "", nil
	}
	return w.ID, nil
}

func (e *engine) Network(_ context.Context, n cluster.NetworkSpec) error {
	e.note("network %s", n.Name)
	if e.inUse != nil && e.inUse() {
		return errdefs.ErrUnavailable.WithMessage("it has active endpoints")
	}
	return nil
}

func (e *engine) Volume(_ context.Context, v cluster.VolumeSpec) error {
	e.note("volume %s", v.Name)
	return nil
}

func (e *engine) Files(_ context.Context, task string, files []File) (out []string, _ error) {
	for i, f := range files {
		out = append(out, fmt.Sprintf("/files/%s/%d", task[:1], i))
		e.note("file %s %d:%d %o", f.Data, f.UID, f.GID, f.Mode)
	}
	if len(files) == 0 {
		e.note("no files")
	}
	return out, nil
}

// rig is an executor with an app in its store.
type rig struct {
	t *testing.T
	s *mem.Store
	e *engine
	x *Executor
}

func begin(t *testing.T) *rig {
	r := &rig{t: t, s: mem.New(store.NewState()), e: &engine{}}
	r.x = New("n1", r.s, r.e, r.e, slog.New(slog.DiscardHandler))
	app := &cluster.App{Meta: cluster.Meta{ID: "app", Name: "shop"}}
	web := &cluster.Service{Meta: cluster.Meta{ID: "web", Name: "shop_web", Owner: "app"}, Spec: cluster.ServiceSpec{Ports: []cluster.Port{
		{Proto: network.TCP, Target: 80, Published: 8080, Address: "127.0.0.1"}, {Proto: network.UDP, Target: 53}}}}
	meta := func(name string) cluster.Meta { return cluster.Meta{Name: name, Owner: "app"} }
	for _, o := range []cluster.Object{
		app, web, &cluster.Network{Meta: meta("shop_net"), Spec: cluster.NetworkSpec{Name: "shop_net"}}, &cluster.Volume{Meta: meta("shop_data"), Spec: cluster.VolumeSpec{Name: "far"}},
		&cluster.Secret{Meta: meta("shop_key"), Spec: cluster.SecretSpec{Data: []byte("hush")}}, &cluster.Config{Meta: cluster.Meta{Name: "conf"}, Spec: cluster.ConfigSpec{Data: []byte("a=1")}},
	} {
		if _, err := r.s.Commit(t.Context(), store.Create(o)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// task is one of the service, with all that it can want.
func (r *rig) task(id string, f func(*cluster.Task)) *controller {
	t := &cluster.Task{
		Meta: cluster.Meta{ID: id, Name: "shop_web.2", Owner: "web"}, Slot: 2,
		Networks: []cluster.Attachment{{Network: "shop_net", Settings: &network.EndpointSettings{Aliases: []string{"web"}}}, {Network: "theirs"}},
		Spec: cluster.TaskSpec{
			Grace: 3 * time.Second, Pull: "always",
			Container: &container.Config{Image: "web", Hostname: "h{{.Task.Slot}}", Labels: map[string]string{"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}},
			Host:      &container.HostConfig{AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}, Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "far", Target: "/data"}, {Type: mount.TypeBind, Source: "/a", Target: "/b"}}},
			Secrets:   []cluster.FileRef{{Name: "key", Target: "/run/secrets/key", UID: "1", GID: "2", Mode: 0o400}},
			Configs:   []cluster.FileRef{{Name: "conf", Target: "/etc/conf", Mode: 0o444}},
		},
	}
	f(t)
	return r.x.Controller(t).(*controller)
}

func (r *rig) did(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.e.asked, want) {
		r.t.Errorf("it was asked\n%s\nwant\n%s", strings.Join(r.e.asked, "\n"), strings.Join(want, "\n"))
	}
	r.e.asked = nil
}

// A task's container has all that it needs, is made once, and goes whole.
func TestLifeOfAContainer(t *testing.T) {
	r := begin(t)
	c := r.task("t1", func(*cluster.Task) {})
	for range 2 {
		if err := c.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.did("image web always", "network shop_net", "volume far", "file hush 1:2 400", "file a=1 0:0 444", "create shop-web-2",
		"file hush 1:2 400", "file a=1 0:0 444", "network shop_net", "volume far") // the second time, what could have gone
	m := r.e.list[0]
	if m.host.AutoRemove || m.host.RestartPolicy.Name != "no" || m.policy.Name != "always" || m.host.NetworkMode != "shop_net" || len(m.networks) != 2 || m.config.Hostname != "h2" {
		t.Errorf("it stands as %+v, %+v", m.host, m.config)
	}
	if l := m.Labels; l[LabelTask] != "t1" || l[LabelNumber] != "2" || l[LabelBalance] != "web" || l[LabelTaskName] != "shop_web.2.t1" || l[LabelNode] != "n1" {
		t.Errorf("labels %v", l)
	}
	if b := fmt.Sprint(m.host.PortBindings); !strings.Contains(b, "80/tcp:[{127.0.0.1 8080}]") || !strings.Contains(b, "53/udp:") {
		t.Errorf("ports %s", b)
	}
	if got := m.host.Mounts; len(got) != 4 || got[2].Source != "/files/t/0" || got[2].Target != "/run/secrets/key" || !got[3].ReadOnly {
		t.Errorf("mounts %+v", got)
	}
	if len(c.t.Spec.Host.Mounts) != 2 || !c.t.Spec.Host.AutoRemove || c.t.Spec.Container.Labels[LabelTask] != "" {
		t.Error("the task was changed")
	}
	if st, err := c.Start(t.Context()); err != nil || st.ID != m.ID || st.PID != 7 {
		t.Errorf("started: %+v, %v", st, err)
	}
	if known, err := r.x.Known(t.Context()); err != nil || !slices.Equal(known, []string{"t1"}) {
		t.Errorf("known: %v, %v", known, err)
	}
	for range 2 {
		if err := errors.Join(c.Remove(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	r.did("start shop-web-2", "remove shop-web-2", "no files", "no files")
	if err := c.Shutdown(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("ending what is gone: %v", err)
	}
}

// The next task of a place gets the name, if it is ours to give.
func TestNames(t *testing.T) {
	r := begin(t)
	if err := r.task("t1", func(*cluster.Task) {}).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := r.e.list[0]
	if err := r.task("t2", func(*cluster.Task) {}).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.e.list[1].Name != "shop-web-2" || old.Name != "000000000000_shop-web-2" && !strings.HasSuffix(old.Name, "_shop-web-2") {
		t.Errorf("names %s and %s", old.Name, r.e.list[1].Name)
	}
	r.e.list = append(r.e.list, &made{Container: Container{ID: "foreign", Name: "mine"}})
	if err := r.task("t3", func(t *cluster.Task) { t.Spec.Name = "mine" }).Prepare(t.Context()); !errdefs.IsConflict(err) {
		t.Errorf("somebody else's name: %v", err)
	}
	plain := &cluster.Task{Meta: cluster.Meta{ID: "t4", Name: "shop_web.2"}, Slot: 2}
	if got := plain.ContainerName(); got != "shop_web.2.t4" {
		t.Errorf("a service's own: %s", got)
	}
}

func TestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		health []container.HealthStatus
		told   int
		wrong  error
	}{
		"without a check": {[]container.HealthStatus{container.NoHealthcheck}, 1, nil},
		"healthy":         {[]container.HealthStatus{container.Starting, container.Healthy}, 1, nil},
		"unhealthy":       {[]container.HealthStatus{container.Starting, container.Unhealthy, container.Healthy}, 0, errUnhealthy},
	} {
		r := begin(t)
		task := r.task("t1", func(*cluster.Task) {})
		if err := task.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.e.health = c.health
		told := 0
		code, err := task.Wait(t.Context(), func() { told++ })
		if told != c.told || !errors.Is(err, c.wrong) || c.wrong == nil && code != 5 {
			t.Errorf("%s: told %d times, %d, %v", name, told, code, err)
		}
	}
}

// What is missing is named.
func TestPrepareRefused(t *testing.T) {
	for want, f := range map[string]func(*cluster.Task){
		"No such image: missing": func(t *cluster.Task) { t.Spec.Container.Image = "missing" },
		"secret none not found":  func(t *cluster.Task) { t.Spec.Secrets[0].Name = "none" },
		"config none not found":  func(t *cluster.Task) { t.Spec.Configs[0].Name = "none" },
		`"x" is no id of a user`: func(t *cluster.Task) { t.Spec.Secrets[0].UID = "x" },
		"secret abc not found":   func(t *cluster.Task) { t.Spec.Secrets[0].ID = "abc" },
	} {
		r := begin(t)
		if err := r.task("t1", f).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), want) || len(r.e.list) > 0 {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// What another orchestrator kept is let go, and what a reboot took of files comes back.
func TestOpen(t *testing.T) {
	r := begin(t)
	c := r.task("t1", func(t *cluster.Task) {
		t.Node, t.Desired, t.Status.State = "n1", cluster.TaskRunning, cluster.TaskRunning
	})
	if _, err := r.s.Commit(t.Context(), store.Create(c.t)); err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.e.list = append(r.e.list, &made{Container: Container{ID: "old", Name: "theirs", Task: "t0", Node: "n0"}}, &made{Container: Container{ID: "left", Name: "left", Task: "t2", Node: "n1"}})
	r.e.asked = nil
	if err := r.x.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.did("file hush 1:2 400", "file a=1 0:0 444", "release theirs", "sweep t9")
	known, err := r.x.Known(t.Context())
	if err != nil || !slices.Equal(known, []string{"t1", "t2"}) {
		t.Errorf("known: %v, %v", known, err)
	}
	for range 2 {
		if err := c.Release(t.Context()); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	r.did("release shop-web-2")
}

// A task has the anonymous volumes of the container that its place had before, and the
// image that its name stood for when it was asked.
func TestSuccession(t *testing.T) {
	r := begin(t)
	number := uint64(0)
	next := func(id string, fresh uint64) *made {
		t.Helper()
		number++
		c := r.task(id, func(t *cluster.Task) {
			t.Number, t.Spec.Fresh, t.Spec.ImageID = number, fresh, map[bool]string{true: "missing", false: "sha256:1"}[id == "t4"]
		})
		if _, err := r.s.Commit(t.Context(), store.Create(c.t)); err != nil {
			t.Fatal(err)
		}
		if err := c.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.e.list[len(r.e.list)-1]
	}
	first := next("t1", 0)
	first.Anonymous = map[string]string{"/data": "v1"}
	if first.request.TakesOver != nil || first.request.ImageID != "sha256:1" || first.config.Image != "web" {
		t.Errorf("the first: %+v", first.request)
	}
	second := next("t2", 0)
	if second.request.TakesOver["/data"] != "v1" {
		t.Errorf("the second: %v", second.request.TakesOver)
	}
	second.Anonymous = second.request.TakesOver
	if fresh := next("t3", 1); fresh.request.TakesOver != nil {
		t.Errorf("one that is to have fresh ones: %v", fresh.request.TakesOver)
	}
	if fourth := next("t4", 1); fourth.request.ImageID != "" {
		t.Errorf("of an image that is gone: %q", fourth.request.ImageID)
	}
}

// One that was to take the place of another, and has ended first, gives its name back.
func TestNameGivenBack(t *testing.T) {
	r := begin(t)
	old, next := r.task("t1", func(*cluster.Task) {}), r.task("t2", func(*cluster.Task) {})
	for _, c := range []*controller{old, next} {
		if err := c.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	first, second := r.e.list[0], r.e.list[1]
	second.PID = 0 // it ends
	for range 2 {
		if err := next.Shutdown(t.Context()); err != nil || first.Name != "shop-web-2" || second.Name == "shop-web-2" {
			t.Errorf("names %s and %s, %v", first.Name, second.Name, err)
		}
	}
	for _, c := range []*controller{r.task("t4", func(*cluster.Task) {})} { // removed at once, it does so, too
		if err := c.Prepare(t.Context()); err != nil || first.Name == "shop-web-2" {
			t.Fatal(err, first.Name)
		}
		if err := c.Remove(t.Context()); err != nil || first.Name != "shop-web-2" {
			t.Errorf("name %s, %v", first.Name, err)
		}
	}
	third := r.task("t3", func(*cluster.Task) {})
	if err := third.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.Shutdown(t.Context()); err != nil || r.e.list[2].Name != "shop-web-2" {
		t.Errorf("the next one's name is %s, %v", r.e.list[2].Name, err)
	}
}

// Of a service of the swarm the task's own values are filled in wherever they may be asked
// for, and its container says which service it is of; an app's variables are left alone.
func TestTemplates(t *testing.T) {
	r := begin(t)
	ctx := t.Context()
	for _, o := range []cluster.Object{
		&cluster.Node{Meta: cluster.Meta{ID: "n1", Name: "host1"}},
		&cluster.Secret{Meta: cluster.Meta{ID: "s1", Name: "pass"}, Spec: cluster.SecretSpec{Data: []byte("hush")}},
		&cluster.Config{Meta: cluster.Meta{ID: "c1", Name: "conf1"}, Spec: cluster.ConfigSpec{Template: true, Data: []byte(`{{.Task.Slot}} {{env "N"}} {{secret "pass"}} {{config "plain"}}`)}},
		&cluster.Config{Meta: cluster.Meta{ID: "c2", Name: "plain"}, Spec: cluster.ConfigSpec{Data: []byte("{{.Not}}")}},
	} {
		if _, err := r.s.Commit(ctx, store.Create(o)); err != nil {
			t.Fatal(err)
		}
	}
	spec := func(task *cluster.Task) {
		task.Name, task.Owner, task.Networks = "web.2", "service", nil
		task.Spec.Container = &container.Config{Image: "web", Hostname: "h{{.Task.Slot}}", Env: []string{"N={{.Node.Hostname}}"}}
		task.Spec.Host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "v{{.Task.Slot}}", Target: "/d", VolumeOptions: &mount.VolumeOptions{
			Labels: map[string]string{"of": "{{.Service.Name}}"}, DriverConfig: &mount.Driver{Options: map[string]string{"o": "{{.Task.Slot}}"}}}}}
		task.Spec.Secrets = []cluster.FileRef{{ID: "s1", Name: "pass", Target: "/run/secrets/pass"}}
		task.Spec.Configs = []cluster.FileRef{{ID: "c1", Name: "conf1", Target: "/conf"}, {ID: "c2", Name: "plain", Target: "/plain"}}
	}
	c := r.task("t9", spec)
	if err := c.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	m := r.e.list[0]
	v := m.host.Mounts[0]
	if m.Name != "web.2.t9" || m.config.Hostname != "h2" || m.config.Env[0] != "N=host1" || v.Source != "v2" || v.VolumeOptions.Labels["of"] != "web" || v.VolumeOptions.DriverConfig.Options["o"] != "2" || m.Labels[LabelOfName] != "web" {
		t.Errorf("%s %+v %+v %+v", m.Name, m.config, v, v.VolumeOptions)
	}
	if !slices.Contains(r.e.asked, "file 2 host1 hush {{.Not}} 0:0 0") || c.t.Spec.Host.Mounts[0].VolumeOptions.Labels["of"] != "{{.Service.Name}}" {
		t.Errorf("%q", r.e.asked)
	}
	of := r.task("t8", func(task *cluster.Task) {
		spec(task)
		task.App, task.Spec.Configs, task.Name = "app", nil, "shop_web.1"
	})
	if err := of.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	if m := r.e.list[1]; m.config.Env[0] != "N={{.Node.Hostname}}" || m.config.Hostname != "h2" || m.Labels[LabelOfName] != "" {
		t.Errorf("%+v", m.config)
	}
	for _, text := range []string{`{{secret "other"}}`, `{{config "conf1"}}`, `{{env "X"}}`} {
		bad := r.task("t7", func(task *cluster.Task) { spec(task); task.Spec.Configs = task.Spec.Configs[:1] })
		o, _ := store.Find[*cluster.Config](r.s.View(), "c1")
		o = store.Copy(o)
		o.Spec.Data = []byte(strings.Replace(text, "conf1", "/conf", 1))
		if _, err := r.s.Commit(ctx, store.Update(o)); err != nil {
			t.Fatal(err)
		}
		if err := bad.Prepare(ctx); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
