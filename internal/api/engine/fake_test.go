package engine

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/opencontainers/go-digest"
)

// fakeContainers is an engine of records and recorded calls. Methods that are
// told to fail by name do.
type fakeContainers struct {
	mu    sync.Mutex
	views []container.View
	calls []string
	fail  map[string]error
	exec  container.Exec

	created container.Create
	result  chan container.WaitResult
	attach  func(ctx context.Context, a container.Attach, open func(bool) (io.ReadWriteCloser, error)) error
	lines   func(o logs.ReadOptions) logs.Reader
	tty     bool
}

func (f *fakeContainers) note(method string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.TrimSpace(method+" "+strings.Trim(fmt.Sprintf("%+v", args), "[]")))
	return f.fail[method]
}

func (f *fakeContainers) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return ""
	}
	return f.calls[len(f.calls)-1]
}

func (f *fakeContainers) Create(_ context.Context, c container.Create) (container.CreateResult, error) {
	err := f.note("Create", c.Name)
	f.mu.Lock()
	f.created = c
	f.mu.Unlock()
	return container.CreateResult{ID: "c0ffee", Warnings: []string{"careful"}}, err
}
func (f *fakeContainers) Start(_ context.Context, ref string) error { return f.note("Start", ref) }
func (f *fakeContainers) Stop(_ context.Context, ref string, s container.Stop) error {
	return cmp.Or(f.allow(ref, s.Before), f.note("Stop", ref, s.Signal, number(s.Timeout)))
}

// allow asks what stops and removals ask first.
func (f *fakeContainers) allow(ref string, before func(context.Context, *container.Record) error) error {
	v, err := f.Get(ref)
	if err != nil || before == nil {
		return nil
	}
	return before(context.Background(), &v.Record)
}
func (f *fakeContainers) Restart(_ context.Context, ref string, s container.Stop) error {
	return f.note("Restart", ref, s.Signal, number(s.Timeout))
}
func number(n *int) any {
	if n == nil {
		return "default"
	}
	return *n
}
func (f *fakeContainers) Kill(_ context.Context, ref, sig string) error {
	return f.note("Kill", ref, sig)
}
func (f *fakeContainers) Pause(_ context.Context, ref string) error   { return f.note("Pause", ref) }
func (f *fakeContainers) Unpause(_ context.Context, ref string) error { return f.note("Unpause", ref) }
func (f *fakeContainers) Wait(_ context.Context, ref, cond string) (<-chan container.WaitResult, error) {
	return f.result, f.note("Wait", ref, cond)
}
func (f *fakeContainers) SafeMode() (bool, string)  { return true, "it crashed" }
func (f *fakeContainers) SetSafeMode(on bool) error { return f.note("SetSafeMode", on) }
func (f *fakeContainers) Unlink(_ context.Context, link string) error {
	return f.note("Unlink", link)
}
func (f *fakeContainers) Remove(_ context.Context, ref string, r container.Remove) error {
	return cmp.Or(f.allow(ref, r.Before), f.note("Remove", ref, r.Force, r.Volumes))
}
func (f *fakeContainers) Connect(_ context.Context, ref, name string, _ *network.EndpointSettings) error {
	return f.note("Connect", ref, name)
}

func (f *fakeContainers) Disconnect(_ context.Context, ref, name string, force bool) error {
	return f.note("Disconnect", ref, name, force)
}

func (f *fakeContainers) Rename(_ context.Context, ref, name string) error {
	return f.note("Rename", ref, name)
}
func (f *fakeContainers) Resize(_ context.Context, ref string, rows, cols uint16) error {
	return f.note("Resize", ref, rows, cols)
}
func (f *fakeContainers) Get(ref string) (container.View, error) {
	for _, v := range f.views {
		if v.Name == strings.TrimPrefix(ref, "/") || strings.HasPrefix(string(v.ID), ref) {
			return v, nil
		}
	}
	return container.View{}, noSuch("container: " + ref)
}
func noSuch(what string) error {
	return &kindError{kind: errdefs.ErrNotFound, msg: "No such " + what}
}
func (f *fakeContainers) List() []container.View { return append([]container.View(nil), f.views...) }
func (f *fakeContainers) Size(context.Context, string) (int64, int64, error) {
	return 42, 4242, f.fail["Size"]
}
func (f *fakeContainers) Attach(ctx context.Context, ref string, a container.Attach, open func(bool) (io.ReadWriteCloser, error)) error {
	if err := f.note("Attach", ref, a); err != nil {
		return err
	}
	return f.attach(ctx, a, open)
}
func (f *fakeContainers) Logs(_ context.Context, ref string, o logs.ReadOptions) (logs.Reader, bool, error) {
	if err := f.note("Logs", ref, o.Stdout, o.Stderr, o.Tail, o.Follow, o.Details, unixOf(o.Since), unixOf(o.Until)); err != nil {
		return nil, false, err
	}
	return f.lines(o), f.tty, nil
}
func unixOf(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
func (f *fakeContainers) Stats(ctx context.Context, ref string, o container.StatsOptions, send func(*apicontainer.StatsResponse) error) error {
	if err := f.note("Stats", ref, o.Stream, o.OneShot); err != nil {
		return err
	}
	for {
		s := &apicontainer.StatsResponse{ID: "c0ffee", Name: "/" + ref, OSType: "linux"}
		s.CPUStats.CPUUsage.TotalUsage = 5
		if err := send(s); err != nil || !o.Stream {
			return err
		}
		select {
		case <-ctx.Done():
			_ = f.note("Stats ended")
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
func (f *fakeContainers) Top(_ context.Context, ref, args string) (apicontainer.TopResponse, error) {
	return apicontainer.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"1", "sleep <9>"}}}, f.note("Top", ref, args)
}
func (f *fakeContainers) Update(_ context.Context, ref string, u apicontainer.UpdateConfig) ([]string, error) {
	pids := any("same")
	if u.PidsLimit != nil {
		pids = *u.PidsLimit
	}
	return []string{"careful"}, f.note("Update", ref, u.Memory, pids, u.RestartPolicy.Name)
}
func (f *fakeContainers) ExecCreate(_ context.Context, ref string, c container.ExecConfig) (string, error) {
	return "e1", f.note("ExecCreate", ref, c)
}
func (f *fakeContainers) ExecStart(ctx context.Context, id string, size [2]uint16, open func(bool) (io.ReadWriteCloser, error)) error {
	if err := f.note("ExecStart", id, size, open == nil); err != nil || open == nil {
		return err
	}
	return f.attach(ctx, container.Attach{}, open)
}
func (f *fakeContainers) ExecResize(_ context.Context, id string, rows, cols uint16) error {
	return f.note("ExecResize", id, rows, cols)
}
func (f *fakeContainers) ExecGet(id string) (container.Exec, error) {
	if f.exec.ID != id {
		return container.Exec{}, noSuch("exec instance: " + id)
	}
	return f.exec, nil
}

// fakeImages holds images by name and id.
type fakeImages struct {
	images []image.Image
	fail   map[string]error
	last   string
	body   int64
}

func (f *fakeImages) List(context.Context) ([]image.Image, error) { return f.images, f.fail["List"] }
func (f *fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	for _, img := range f.images {
		for _, name := range append([]string{img.ID}, img.RepoTags...) {
			if name == ref || name == ref+":latest" || strings.HasPrefix(img.ID, "sha256:"+ref) {
				return img, f.fail["Get"]
			}
		}
	}
	return image.Image{}, noSuch("image: " + ref)
}
func (f *fakeImages) Import(_ context.Context, r io.Reader, o image.ImportOptions) (image.Image, error) {
	n, err := io.Copy(io.Discard, r)
	f.body, f.last = n, fmt.Sprintf("Import %s %q %q %s", o.Ref, o.Message, o.Changes, o.Platform)
	if err == nil {
		o.Progress(image.Progress{Status: "Importing", Current: n, Total: o.Size})
		err = f.fail["Import"]
	}
	return image.Image{ID: "sha256:feed"}, err
}
func (f *fakeImages) Load(_ context.Context, r io.Reader, o image.LoadOptions) error {
	if err := f.fail["Load"]; err != nil {
		return err
	}
	// The answer begins before the archive has ended.
	if !o.Quiet {
		o.Progress(image.Progress{ID: "abc", Status: "Loading layer", Current: 1, Total: 2})
	}
	n, err := io.Copy(io.Discard, r)
	f.body, f.last = n, "Load "+o.Platform
	if err != nil {
		return err
	}
	o.Loaded("Loaded image: debian:latest")
	return nil
}
func (f *fakeImages) Parts(_ context.Context, img image.Image) ([]image.Part, error) {
	return []image.Part{{Manifest: img.Target, Here: true}}, nil
}

func (f *fakeImages) Save(_ context.Context, w io.Writer, refs []string, _ string) error {
	f.last = "Save " + strings.Join(refs, " ")
	if err := f.fail["Save"]; err != nil {
		return err
	}
	if _, err := io.WriteString(w, "tar of "+strings.Join(refs, " ")); err != nil {
		return err
	}
	return f.fail["SaveLate"]
}
func (f *fakeImages) Tag(_ context.Context, ref, target string) error {
	f.last = "Tag " + ref + " " + target
	return f.fail["Tag"]
}
func (f *fakeImages) Remove(_ context.Context, ref string, o image.RemoveOptions) ([]image.Deleted, error) {
	f.last = fmt.Sprintf("Remove %s %v %v %+v", ref, o.Force, o.NoPrune, o.Users("sha256:"+strings.Repeat("1", 64)))
	return []image.Deleted{{Untagged: ref}, {Deleted: "sha256:feed"}}, f.fail["Remove"]
}
func (f *fakeImages) Prune(_ context.Context, o image.PruneOptions) (image.Pruned, error) {
	var p image.Pruned
	for _, img := range f.images {
		if (o.All || len(img.RepoTags) == 0) && o.Match(img) && len(o.Users(img.ID)) == 0 {
			p.Deleted = append(p.Deleted, image.Deleted{Deleted: img.ID})
			p.Bytes += img.Size
		}
	}
	return p, f.fail["Prune"]
}
func (f *fakeImages) History(_ context.Context, ref string) ([]image.HistoryItem, error) {
	if err := f.fail["History"]; err != nil {
		return nil, err
	}
	return []image.HistoryItem{{ID: "sha256:1", Created: at, CreatedBy: "import", Tags: []string{ref}, Size: 7, Comment: "hi"}, {ID: "<missing>"}}, nil
}

type fakeSystem struct{ err error }

func (f fakeSystem) Info(context.Context) (*system.Info, error) {
	return &system.Info{
		ID: "X", Name: "host", OSType: "linux", ServerVersion: "0.1", SecurityOptions: []string{"name=seccomp,profile=builtin"},
		Runtimes:   map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}, Status: map[string]string{"a": "b"}}},
		RuncCommit: system.Commit{ID: "1.5.2"}, Containerd: &system.ContainerdInfo{}, FirewallBackend: &system.FirewallInfo{Driver: "nftables"},
		DefaultRuntime: "runc",
	}, f.err
}
func (fakeSystem) Version(context.Context) system.VersionResponse {
	return system.VersionResponse{Version: "0.1", Os: "linux", Arch: "amd64"}
}
func (fakeSystem) Ping() PingInfo {
	return PingInfo{OSType: "linux", BuilderVersion: "2", SwarmState: "inactive"}
}

// Sample data, all of one time.
var at = time.Date(2026, 11, 21, 5, 48, 2, 979531953, time.UTC)

func id(digit string) container.ID { return container.ID(strings.Repeat(digit, 64)) }

func sampleImages() []image.Image {
	base := image.Image{ID: "sha256:" + strings.Repeat("1", 64), RepoTags: []string{"debian:latest"}, Size: 100, LastTagged: at}
	base.Config.Created, base.Config.OS, base.Config.Architecture = &at, "linux", "amd64"
	base.Config.Config.Cmd = []string{"sh"}
	base.Config.Config.Labels = map[string]string{"base": "yes"}
	base.Config.RootFS.DiffIDs = []digest.Digest{"sha256:aa"}
	base.Layers = []image.Layer{{ChainID: "aa", Size: 100}}
	later := at.Add(time.Hour)
	child := image.Image{ID: "sha256:" + strings.Repeat("2", 64), RepoTags: []string{"registry.example/app:1", "app:1"}, Size: 150, Comment: "built"}
	child.Config.Created, child.Config.OS, child.Config.Architecture = &later, "linux", "amd64"
	child.Config.RootFS.DiffIDs = []digest.Digest{"sha256:aa", "sha256:bb"}
	child.Layers = []image.Layer{{ChainID: "aa", Size: 100}, {ChainID: "aabb", Size: 50}}
	loose := image.Image{ID: "sha256:" + strings.Repeat("3", 64), Size: 7}
	loose.Config.OS, loose.Config.Architecture = "linux", "arm64"
	return []image.Image{base, child, loose}
}

func sampleViews() []container.View {
	code := func(r container.Record) container.View { return container.View{Record: r} }
	web := container.Record{
		ID: id("a"), Name: "web", Created: at.Add(2 * time.Minute), ImageID: "sha256:" + strings.Repeat("2", 64), Platform: "linux",
		Path: "sh", Args: []string{"-c", "exec httpd"},
		Config: &apicontainer.Config{
			Hostname: "web", Image: "app:1", Cmd: []string{"sh", "-c", "exec httpd"}, Env: []string{"A=b"},
			ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}, network.MustParsePort("9090/tcp"): {}},
			Labels:       map[string]string{"k": "v", "com.example": `a "quoted" <tag>`},
			Healthcheck:  &apicontainer.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: 2 * time.Second},
		},
		HostConfig: &apicontainer.HostConfig{
			NetworkMode: "bridge", LogConfig: apicontainer.LogConfig{Type: "json-file"}, Binds: []string{"/srv:/data"},
			PortBindings:  network.PortMap{network.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8099"}}},
			RestartPolicy: apicontainer.RestartPolicy{Name: "no"}, ShmSize: 64 << 20, IpcMode: "private", CgroupnsMode: "private", Runtime: "runc",
			Annotations: map[string]string{"note": "x"},
		},
		Mounts: []container.Mount{{Type: "bind", Source: "/srv", Destination: "/data", RW: true, Propagation: "rprivate"}},
		Endpoints: []endpoint{{
			Network: "bridge", NetworkID: strings.Repeat("e", 64), EndpointID: strings.Repeat("f", 64), IP: "172.17.0.2", PrefixLen: 16,
			Gateway: "172.17.0.1", MAC: "02:42:ac:11:00:02",
			Ports: network.PortMap{network.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8099"}}},
		}},
		LogPath: "/var/lib/escale/containers/a/a-json.log",
		State: container.State{Status: container.Running, Pid: 77, StartedAt: at.Add(3 * time.Minute), Health: &container.Health{
			Status: "healthy", FailingStreak: 1, Log: []*apicontainer.HealthcheckResult{{Start: at, End: at.Add(time.Second), Output: "ok"}},
		}},
	}
	job := container.Record{
		ID: id("b"), Name: "job", Created: at.Add(time.Minute), ImageID: "sha256:" + strings.Repeat("1", 64), Platform: "linux",
		Path: "false", Config: &apicontainer.Config{Image: "debian", Labels: map[string]string{"com.docker.swarm.task.id": "t"}},
		HostConfig: &apicontainer.HostConfig{NetworkMode: "none"},
		State:      container.State{Status: container.Exited, ExitCode: 3, StartedAt: at, FinishedAt: at.Add(time.Second)},
	}
	fresh := container.Record{
		ID: id("c"), Name: "fresh", Created: at, ImageID: "sha256:" + strings.Repeat("9", 64), Platform: "linux",
		Path: "echo", Args: []string{"a b", "c'd"}, Config: &apicontainer.Config{Image: "gone:1"},
		HostConfig: &apicontainer.HostConfig{NetworkMode: "bridge"},
		Mounts:     []container.Mount{{Type: "volume", Name: "vol", Destination: "/v", Driver: "local", RW: true}},
		State:      container.State{Status: container.Created},
	}
	return []container.View{code(web), code(job), code(fresh)}
}

// rig is a server on a unix socket with fakes behind it, which are prepared before it serves.
type rig struct {
	t      testing.TB
	con    *fakeContainers
	img    *fakeImages
	events *events.Journal
	server *Server
	socket string
	client *http.Client
}

func newRig(t testing.TB, prepare ...func(*rig)) *rig {
	t.Helper()
	r := &rig{
		t:      t,
		con:    &fakeContainers{views: sampleViews(), fail: map[string]error{}, result: make(chan container.WaitResult, 1)},
		img:    &fakeImages{images: sampleImages(), fail: map[string]error{}},
		events: events.New(events.Config{Size: 100}),
		socket: filepath.Join(t.TempDir(), "s"),
	}
	r.server = New(Config{
		Containers: r.con, Watching: r.con, Updates: r.con, Images: r.img, Volumes: new(fakeVolumes), Plugins: new(fakePlugins), Networks: fakeNetworks(nil), Builder: new(fakeBuilder), System: fakeSystem{}, SafeMode: r.con, Events: r.events, Version: "0.1",
		ContainerDir: "/var/lib/escale/containers",
		Sandbox:      func(id container.ID) (string, string) { return "s-" + id.Short(), "/run/escale/netns/s" },
	})
	for _, p := range prepare {
		p(r)
	}
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(context.Background(), l) }()
	r.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return net.Dial("unix", r.socket) },
	}}
	t.Cleanup(func() {
		r.client.CloseIdleConnections()
		r.server.Close()
		r.events.Close()
		// A test that asks for nothing may be over before Serve has begun.
		if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

// do sends a request and returns status, header and body.
func (r *rig) do(method, path, body string, header ...string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://engine"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

// dial opens a raw connection with a deadline.
func (r *rig) dial() *net.UnixConn {
	r.t.Helper()
	c, err := net.Dial("unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r.t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// head reads a status line and header from a raw connection.
func head(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		if line == "\r\n" {
			return b.String()
		}
		b.WriteString(line)
	}
}

var errBoom = errors.New("boom")
