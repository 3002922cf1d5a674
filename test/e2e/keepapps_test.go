package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/client"
	"escale.dev/escale/test/internal/harness"
)

// stays is what a program does that waits to be told to end.
var stays = []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1 & wait $!; done"}

// keeper is an engine that keeps an app.
type keeper struct {
	t   *testing.T
	e   *harness.Engine
	api *harness.API
	c   *client.Client
	app harness.App
}

// keep starts an engine that keeps an app of two replicas of web and one of db.
func keep(t *testing.T) *keeper {
	t.Helper()
	e := start(t, harness.Options{})
	c, err := client.New(client.Options{Host: e.Host()})
	if err != nil {
		t.Fatal(err)
	}
	api := e.API()
	t.Cleanup(func() { api.Close(); c.Close() })
	k := &keeper{t: t, e: e, api: api, c: c, app: harness.App{Name: "shop", Volumes: []string{"data"}, Services: map[string]harness.AppService{
		"web": {Image: image, Cmd: stays, Replicas: 2},
		"db":  {Image: image, Cmd: stays, Volumes: map[string]string{"data": "/data"}},
	}}}
	k.up()
	return k
}

func (k *keeper) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	k.t.Cleanup(cancel)
	return ctx
}

// up asks for the app and waits until it is so.
func (k *keeper) up() {
	k.t.Helper()
	if _, err := k.c.AppPut(k.ctx(), "shop", k.app.JSON(), client.AppPutOptions{}); err != nil {
		k.t.Fatal(err)
	}
	k.until("it is up", func(a *client.App) bool { return a.Phase == "steady" && a.Number == a.Asked && a.Message == "" })
}

var errEnough = errors.New("enough")

// until follows the app until it is so.
func (k *keeper) until(what string, is func(*client.App) bool) *client.App {
	k.t.Helper()
	var last *client.App
	err := k.c.AppFollow(k.ctx(), "shop", func(a *client.App) error {
		if last = a; is(a) {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		k.t.Fatalf("until %s: %v; it is %+v", what, err, last)
	}
	return last
}

// gone waits until there is no app any more.
func (k *keeper) gone() {
	k.t.Helper()
	if err := k.c.AppFollow(k.ctx(), "shop", func(*client.App) error { return nil }); err != nil && harness.Status(err) != 404 && !strings.Contains(err.Error(), "No such app") {
		k.t.Fatal(err)
	}
}

// down removes the app and waits until it is gone.
func (k *keeper) down(volumes bool) {
	k.t.Helper()
	if err := k.c.AppRemove(k.ctx(), "shop", volumes); err != nil {
		k.t.Fatal(err)
	}
	k.gone()
}

// docker runs the stock client, or ours, and gives what it says.
func (k *keeper) docker(args ...string) (string, error) {
	k.t.Helper()
	path := clients()["docker"]
	if path == "" {
		path = clients()["escale"]
	}
	out, err := exec.CommandContext(k.ctx(), path, append([]string{"-H", k.e.Host()}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// does is docker that must succeed.
func (k *keeper) does(args ...string) string {
	k.t.Helper()
	out, err := k.docker(args...)
	if err != nil {
		k.t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// refuses is docker that must fail with words.
func (k *keeper) refuses(words string, args ...string) {
	k.t.Helper()
	if out, err := k.docker(args...); err == nil || !strings.Contains(out, words) {
		k.t.Errorf("docker %s: %v: %s; want %q", strings.Join(args, " "), err, out, words)
	}
}

// box is what is looked at of a container.
type box struct {
	ID    string
	State struct {
		Status string
		Pid    int
	}
	HostConfig struct{ RestartPolicy struct{ Name string } }
	Config     struct{ Labels map[string]string }
}

// inspect looks at a container by its name.
func (k *keeper) inspect(name string) (b box) {
	k.t.Helper()
	if err := k.api.Do(k.ctx(), "GET", "/containers/"+name+"/json", nil, &b); err != nil {
		k.t.Fatal(err)
	}
	return b
}

// is wants a container to be in a state, and gives its id.
func (k *keeper) is(name, status string) string {
	k.t.Helper()
	b := k.inspect(name)
	if b.State.Status != status {
		k.t.Errorf("%s is %s, want %s", name, b.State.Status, status)
	}
	return b.ID
}

// task finds the task of a container that is the newest of its place.
func task(a *client.App, id string) *client.AppTask {
	for _, s := range a.Services {
		for i := range s.Tasks {
			if s.Tasks[i].Container == id {
				return &s.Tasks[i]
			}
		}
	}
	return nil
}

// replaced waits until a container's place has another, which runs.
func (k *keeper) replaced(name, old string) string {
	k.t.Helper()
	k.until(name+" is replaced", func(a *client.App) bool {
		b := box{}
		err := k.api.Do(k.ctx(), "GET", "/containers/"+name+"/json", nil, &b)
		return err == nil && b.ID != old && b.State.Status == "running" && a.Phase == "steady"
	})
	return k.is(name, "running")
}

// What clients do to an app's containers: a stop and a removal are meant and stay, a
// kill is healed, a restart is neither; what would take a place is refused.
func TestAppIntent(t *testing.T) {
	k := keep(t)
	one, two, db := k.is("shop-web-1", "running"), k.is("shop-web-2", "running"), k.is("shop-db-1", "running")

	k.does("restart", "-t", "2", "shop-web-1")
	if k.is("shop-web-1", "running") != one {
		t.Error("a restart made another container")
	}
	k.does("stop", "shop-web-1")
	k.until("it says so", func(a *client.App) bool { return a.Phase == "steady" && a.Message == "1 stopped by a client" })
	k.does("kill", "shop-web-2")
	second := k.replaced("shop-web-2", two)
	if k.is("shop-web-1", "exited") != one {
		t.Error("what was stopped has come back")
	}
	k.refuses("whose place another has taken", "start", two)
	k.does("rm", two) // and this stops nobody
	k.refuses("its restart policy is that of its service", "update", "--restart", "always", "shop-web-2")
	k.refuses(`app shop is kept by the engine: change it with "escale up", or make its containers yours with "escale release shop"`,
		"create", "--label", "com.docker.compose.project=shop", image, "true")
	k.does("run", "--rm", "--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.oneoff=True", image, "true")

	k.does("start", "shop-web-1")
	k.until("all are up", func(a *client.App) bool { return a.Phase == "steady" && a.Message == "" && task(a, one).Healthy })
	if k.is("shop-web-1", "running") != one || k.is("shop-web-2", "running") != second {
		t.Error("a start made another container")
	}
	k.does("rm", "-f", "shop-db-1")
	k.until("it says so", func(a *client.App) bool { return a.Phase == "steady" && a.Message == "1 stopped by a client" })
	k.does("kill", "shop-web-1") // a fault beside it is healed, which shows that the removal stays
	one = k.replaced("shop-web-1", one)
	if out, err := k.docker("inspect", "shop-db-1"); err == nil {
		t.Errorf("what was removed has come back: %s", out)
	}
	k.up()
	if k.is("shop-db-1", "running") == db || k.is("shop-web-1", "running") != one {
		t.Error("up has brought back something else than what was removed")
	}
	k.down(true)
	noLeaks(t, k.e)
}

// A label makes no container the engine's: one that a client made with it is halted for
// nobody, and is there after the next start.
func TestAppForgedLabel(t *testing.T) {
	k := keep(t)
	id := k.inspect("shop-db-1").Config.Labels["com.docker.swarm.task.id"]
	for _, task := range []string{id, "unknown"} {
		k.does("run", "-d", "--name", "forged"+task, "--label", "com.docker.swarm.task.id="+task, image, "sleep", "1000")
	}
	k.does("rm", "-f", "forged"+id)
	k.does("kill", "shop-web-1")
	a := k.until("it is healed", func(a *client.App) bool { return a.Phase == "steady" })
	if a.Message != "" {
		t.Errorf("the removal of a forged one: %s", a.Message)
	}
	if err := errors.Join(k.e.Kill(), k.e.Start(k.ctx())); err != nil {
		t.Fatal(err)
	}
	k.until("it is up", func(a *client.App) bool { return a.Phase == "steady" })
	k.is("forgedunknown", "running")
	k.does("rm", "-f", "forgedunknown")
	k.down(true)
	noLeaks(t, k.e)
}

// Killed, and with all that can happen meanwhile, the engine knows afterwards what was
// meant and what was not.
func TestAppEngineKilled(t *testing.T) {
	k := keep(t)
	one, two, db := k.is("shop-web-1", "running"), k.is("shop-web-2", "running"), k.is("shop-db-1", "running")
	pid := k.inspect("shop-web-2").State.Pid
	k.does("stop", "shop-db-1")
	k.until("it says so", func(a *client.App) bool { return a.Message == "1 stopped by a client" })
	if err := k.e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := k.e.Start(k.ctx()); err != nil {
		t.Fatal(err)
	}
	k.replaced("shop-web-2", two)
	if k.is("shop-web-1", "running") != one || k.is("shop-db-1", "exited") != db {
		t.Error("what ran or was stopped was not left so")
	}
	k.does("start", "shop-db-1")
	k.until("all are up", func(a *client.App) bool { return a.Phase == "steady" && a.Message == "" })
	k.down(true)
	noLeaks(t, k.e)
}

// A secret has its owner and mode, is in no file of the disk, and is there again when
// the machine came up: also for a container that was stopped meanwhile.
func TestAppSecrets(t *testing.T) {
	k := keep(t)
	k.app.Secrets = map[string]string{"key": "hush"}
	k.app.Services["db"] = harness.AppService{
		Image: image, Cmd: stays,
		Volumes: map[string]string{"data": "/data"}, Secrets: []harness.AppSecret{{Name: "key", UID: "33", GID: "29", Mode: 0o440}},
	}
	k.up()
	want := "33:29 440\nhush"
	look := []string{"exec", "shop-db-1", "sh", "-c", "stat -c '%u:%g %a' /run/secrets/key; cat /run/secrets/key"}
	if got := k.does(look...); got != want {
		t.Errorf("it sees %q, want %q", got, want)
	}
	var mounts struct {
		Mounts []struct{ Source, Destination string }
	}
	if err := k.api.Do(k.ctx(), "GET", "/containers/shop-db-1/json", nil, &mounts); err != nil {
		t.Fatal(err)
	}
	source := ""
	for _, m := range mounts.Mounts {
		if m.Destination == "/run/secrets/key" {
			source = m.Source
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(source, &fs); err != nil || fs.Type != 0x01021994 {
		t.Errorf("%s is not in memory: %x, %v", source, fs.Type, err)
	}
	id := k.is("shop-db-1", "running")
	k.does("stop", "shop-db-1")
	k.until("it says so", func(a *client.App) bool { return a.Message == "1 stopped by a client" })
	if err := k.e.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Unmount(k.e.ExecRoot+"/tasks", syscall.MNT_DETACH); err != nil { // as a reboot does
		t.Fatal(err)
	}
	if err := k.e.Start(k.ctx()); err != nil {
		t.Fatal(err)
	}
	k.does("start", "shop-db-1")
	k.until("it is up", func(a *client.App) bool { return a.Phase == "steady" && a.Message == "" })
	if k.is("shop-db-1", "running") != id {
		t.Error("it is another container")
	}
	if got := k.does(look...); got != want {
		t.Errorf("after the reboot it sees %q, want %q", got, want)
	}
	k.down(true)
	noLeaks(t, k.e)
}

// What is let go runs on as ordinary containers do, with the restart policy that was
// written, its files, networks and volumes, and is nobody's.
func TestAppRelease(t *testing.T) {
	k := keep(t)
	k.app.Secrets = map[string]string{"key": "hush"}
	db := k.app.Services["db"]
	db.Secrets, db.Restart = []harness.AppSecret{{Name: "key"}}, "always"
	k.app.Services["db"] = db
	k.up()
	id, web := k.is("shop-db-1", "running"), k.is("shop-web-2", "running")
	if err := k.c.AppRelease(k.ctx(), "shop"); err != nil {
		t.Fatal(err)
	}
	k.gone()
	if k.is("shop-db-1", "running") != id || k.is("shop-web-2", "running") != web {
		t.Error("they are others")
	}
	b := k.inspect("shop-db-1")
	if b.HostConfig.RestartPolicy.Name != "always" || b.Config.Labels["com.docker.compose.project"] != "shop" {
		t.Errorf("policy %q, labels %v", b.HostConfig.RestartPolicy.Name, b.Config.Labels)
	}
	for name := range b.Config.Labels {
		if strings.HasPrefix(name, "com.docker.swarm.") {
			t.Errorf("it has the label %s", name)
		}
	}
	if err := errors.Join(k.e.Stop(), k.e.Start(k.ctx())); err != nil {
		t.Fatal(err)
	}
	k.does("stop", "shop-web-2")
	k.does("restart", "-t", "2", "shop-db-1")
	if got := k.does("exec", "shop-db-1", "cat", "/run/secrets/key"); got != "hush" {
		t.Errorf("its secret: %q", got)
	}
	k.does("create", "--name", "more", "--label", "com.docker.compose.project=shop", image, "true")
	k.does("rm", "-f", "-v", "more", "shop-web-1", "shop-web-2", "shop-db-1")
	k.does("network", "rm", "shop_default")
	k.does("volume", "rm", "shop_data")
	noLeaks(t, k.e)
}

// down takes networks, and volumes when that is said; what others use stays.
func TestAppDown(t *testing.T) {
	k := keep(t)
	k.down(false)
	k.does("volume", "inspect", "shop_data")
	k.refuses("not found", "network", "inspect", "shop_default")
	if out := k.does("ps", "-a", "-q"); out != "" {
		t.Errorf("containers are left: %s", out)
	}
	k.up()
	k.does("run", "-d", "--name", "guest", "--network", "shop_default", "-v", "shop_data:/d", image, "sleep", "1000")
	k.down(true)
	k.is("guest", "running")
	k.does("network", "inspect", "shop_default")
	k.does("volume", "inspect", "shop_data")
	k.does("rm", "-f", "guest")
	k.does("network", "rm", "shop_default")
	k.does("volume", "rm", "shop_data")
	noLeaks(t, k.e)
}

// An engine whose store was lost lets containers of apps go, and removes none.
func TestAppStoreLost(t *testing.T) {
	k := keep(t)
	ids := map[string]string{}
	for _, name := range []string{"shop-web-1", "shop-web-2", "shop-db-1"} {
		ids[name] = k.is(name, "running")
	}
	if err := errors.Join(k.e.Stop(), loseStore(k.e), k.e.Start(k.ctx())); err != nil {
		t.Fatal(err)
	}
	for name, id := range ids {
		if k.is(name, "running") != id {
			t.Errorf("%s is another", name)
		}
		k.does("rm", "-f", "-v", name)
	}
	if n := strings.Count(complaints(k.e), "kept by an orchestrator that is no more"); n != 3 {
		t.Errorf("it was said %d times", n)
	}
	k.does("network", "rm", "shop_default")
	k.does("volume", "rm", "shop_data")
	noLeaks(t, k.e)
}

// loseStore removes what the orchestrator knows.
func loseStore(e *harness.Engine) error {
	out, err := exec.Command("rm", e.DataRoot+"/state.db").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// What a program has written where nobody named a volume outlives its container.
func TestAppAnonymousVolume(t *testing.T) {
	k := keep(t)
	k.app.Services["db"] = harness.AppService{Image: image, Cmd: stays, Anonymous: "/data"}
	k.up()
	k.does("exec", "shop-db-1", "sh", "-c", "echo kept > /data/x")
	id := k.is("shop-db-1", "running")
	k.does("kill", "shop-db-1")
	k.replaced("shop-db-1", id)
	if got := k.does("exec", "shop-db-1", "cat", "/data/x"); got != "kept" {
		t.Errorf("after a fault it has %q", got)
	}
	k.down(true)
	noLeaks(t, k.e)
}

// When all has ended, as when the machine went down, an app comes up in its order.
func TestAppComesUpInOrder(t *testing.T) {
	k := keep(t)
	late := append([]string{"sh", "-c"}, "sleep 1; touch /tmp/ready; "+stays[2])
	k.app.Services["db"] = harness.AppService{Image: image, Cmd: late, Health: "test -e /tmp/ready"}
	k.app.Services["web"] = harness.AppService{Image: image, Cmd: stays, Replicas: 2, Needs: map[string]string{"db": "service_healthy"}}
	k.up()
	names := []string{"shop-web-1", "shop-web-2", "shop-db-1"}
	ids := map[string]string{}
	var pids []int
	for _, name := range names {
		ids[name] = k.is(name, "running")
		pids = append(pids, k.inspect(name).State.Pid)
	}
	if err := k.e.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.e.Start(k.ctx()); err != nil {
		t.Fatal(err)
	}
	begun := map[string]time.Time{}
	for _, name := range names {
		id := k.replaced(name, ids[name])
		var b struct{ State struct{ StartedAt time.Time } }
		if err := k.api.Do(k.ctx(), "GET", "/containers/"+id+"/json", nil, &b); err != nil {
			t.Fatal(err)
		}
		begun[name] = b.State.StartedAt
	}
	for _, name := range names[:2] {
		if after := begun[name].Sub(begun["shop-db-1"]); after < time.Second {
			t.Errorf("%s was started %s after what it needs, which is well a second after its start", name, after)
		}
	}
	k.down(true)
	noLeaks(t, k.e)
}
