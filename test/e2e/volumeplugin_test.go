package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"golang.org/x/sys/unix"
)

// programs are the programs of other makers that tests use, each built once.
var programs sync.Map

// builtProgram builds a test's program, static, and gives its path.
func builtProgram(t *testing.T, name string) string {
	t.Helper()
	once, _ := programs.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "escale-e2e-prog-")
		if err != nil {
			return "", err
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), "escale.dev/escale/test/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
		return filepath.Join(dir, name), nil
	}))
	path, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// removePrograms removes what builtProgram built.
func removePrograms() {
	programs.Range(func(_, once any) bool {
		if path, err := once.(func() (string, error))(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
		return true
	})
}

// shelf is the volume plugin of the tests, running on the host.
type shelf struct {
	dir string // its own: run/ has the socket, data/ the volumes
	cmd *exec.Cmd
}

// startShelf starts the plugin in dir, where an earlier one may have left volumes.
func startShelf(t *testing.T, dir string) *shelf {
	t.Helper()
	s := &shelf{dir: dir}
	s.start(t)
	t.Cleanup(func() {
		s.kill()
		points, _ := filepath.Glob(dir + "/mnt/*")
		for _, p := range points {
			unix.Unmount(p, unix.MNT_DETACH)
		}
	})
	return s
}

func (s *shelf) start(t *testing.T) {
	t.Helper()
	socket := s.dir + "/run/shelf.sock"
	s.cmd = exec.Command(builtProgram(t, "volumeplugin"), "-socket", socket, "-root", s.dir+"/data", "-mounts", s.dir+"/mnt")
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(5 * time.Millisecond) {
		if info, err := os.Stat(socket); err == nil && info.Mode()&os.ModeSocket != 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatal("the plugin does not listen")
		}
	}
}

// kill ends the plugin as a crash does: its socket stays behind.
func (s *shelf) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// mounted counts what is mounted below the plugin's directory.
func (s *shelf) mounted(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), s.dir+"/mnt/")
}

// awaitMounts waits until the plugin has n volumes mounted.
func (s *shelf) awaitMounts(t *testing.T, n int) {
	t.Helper()
	until := time.Now().Add(harness.Patience(20 * time.Second))
	for s.mounted(t) != n {
		if time.Now().After(until) {
			t.Fatalf("%d volumes are mounted, want %d", s.mounted(t), n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestVolumePlugin drives a real volume plugin through both clients: its volumes are
// made, listed, used, refused and removed.
func TestVolumePlugin(t *testing.T) {
	dir := t.TempDir()
	e := start(t, harness.Options{Args: []string{"--plugin-dir", dir + "/run"}})
	startShelf(t, dir)
	for name, path := range clients() {
		t.Run(name, func(t *testing.T) {
			vars := map[string]string{"IMG": image, "N": "plug-" + name, "W": t.TempDir(), "D": dir}
			for _, c := range []try{
				{args: "volume create -d shelf --label a=b -o size=1 $N", out: "^$N$"},
				{args: "volume create -d shelf $N", out: "^$N$"},
				{args: "volume ls --format '{{.Driver}} {{.Name}} {{.Scope}} {{.Label \"a\"}}' -f driver=shelf", out: "^shelf $N local b$"},
				{args: "volume inspect -f '{{.Driver}} {{.Options.size}} {{.Labels.a}} {{.Status.users}}' $N", out: "^shelf 1 b 0$"},
				{args: "volume create $N-own -d local", out: "^$N-own$"},
				{args: "volume create -d shelf $N-own", code: 1, err: "driver 'local' already has volume '$N-own': volume name must be unique"},
				{args: "volume create -d local $N", code: 1, err: "driver 'shelf' already has volume '$N': volume name must be unique"},
				{args: "volume create -d shelf -o refuse=full $N-x", code: 1, err: "create $N-x: full"},
				{args: "volume create -d nosuch $N-x", code: 1, err: `create $N-x: error looking up volume plugin nosuch: plugin "?nosuch"? not found`},
				{args: "volume create -d bad $N-x", code: 1, err: `error looking up volume plugin bad: plugin "?bad"? not found`},
				{args: "run --rm -v $N:/d $IMG sh -c 'echo in >/d/f; cat /d/f; grep -c \" /d \" /proc/mounts'", out: "^in\n1$"},
				{args: "run --rm -v $N:/d:ro $IMG touch /d/g", code: 1, err: "Read-only"},
				{args: "run --rm --mount type=volume,src=$N,dst=/d,volume-driver=shelf,readonly $IMG cat /d/f", out: "^in$"},
				{args: "run --rm --mount type=volume,src=$N-m,dst=/d,volume-driver=shelf,volume-opt=x=y,volume-label=k=v $IMG touch /d/f"},
				{args: "volume inspect -f '{{.Driver}} {{.Options.x}} {{.Labels.k}}' $N-m", out: "^shelf y v$"},
				{args: "run --rm --mount type=volume,src=$N,dst=/d,volume-driver=local $IMG true", code: 125, err: "driver 'shelf' already has volume '$N'"},
				// the driver fills what the image has where the volume is empty
				{args: "run --rm --volume-driver shelf -v $N-etc:/etc $IMG grep -c root /etc/passwd", out: "^[1-9]"},
				{args: "run --rm --mount type=volume,src=$N-no,dst=/etc,volume-driver=shelf,volume-nocopy $IMG test -e /etc/passwd", code: 1},
				{args: "run --rm -v $N-etc:/d $IMG sh -c 'mkdir -p /d/sub; echo deep >/d/sub/f; ln -s /etc /d/out'"},
				{args: "run --rm --mount type=volume,src=$N-etc,dst=/d,volume-subpath=sub $IMG cat /d/f", out: "^deep$"},
				// who has it, and where
				{args: "create --name $N -v $N:/d $IMG true"},
				{args: "inspect -f '{{range .Mounts}}{{.Type}} {{.Name}} {{.Driver}} {{.Mode}}.{{end}}' $N", out: `^volume $N shelf \.$`},
				{args: "volume rm $N", code: 1, err: `remove $N: volume is in use - \[[0-9a-f]{64}\]`},
				{args: "cp $N:/d/f $W/f"},
				{args: "ps -a --filter volume=$N --format '{{.Names}}'", out: "^$N$"},
				{args: "run --rm --volumes-from $N:ro $IMG sh -c 'cat /d/f; touch /d/g'", code: 1, out: "^in$", err: "Read-only"},
				{args: "rm -v $N"},
				{args: "volume create -d shelf -o mount=refuse $N-l"},
				{args: "run --rm -v $N-l:/d $IMG true", code: 125, err: "error while mounting volume '.*': the shelf is locked"},
				{args: "system df -v --format '{{range .Volumes}}{{.Name}} {{end}}'", out: "$N-own"},
				{args: "volume prune -af", out: "$N-own"},
				{args: "volume ls -q -f driver=shelf", out: "^$N\n$N-etc\n$N-l\n$N-m\n$N-no$"},
				{args: "info -f '{{.Plugins.Volume}}'", out: `^\[local shelf\]$`},
				{args: "volume rm $N $N-m $N-etc $N-no $N-l", out: "^$N$"},
				{args: "volume ls -q", out: "^$"},
			} {
				c.run(t, path, e.Host(), vars)
			}
		})
	}
	left, err := os.ReadDir(dir + "/data")
	if err != nil || len(left) != 1 { // its own state
		t.Errorf("left at the plugin: %v, %v", left, err)
	}
	noLeaks(t, e)
}

// TestVolumePluginFaults kills engine and plugin in turn, while a volume is mounted, before
// a container ends and after, and lets the plugin hang: nothing is mounted twice or for ever,
// nobody else waits, and no volume is lost.
func TestVolumePluginFaults(t *testing.T) {
	dir := t.TempDir()
	e := start(t, harness.Options{Args: []string{"--plugin-dir", dir + "/run"}})
	plug := startShelf(t, dir)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	api := e.API()
	defer func() { api.Close() }()
	again := func() {
		t.Helper()
		api.Close()
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		api = e.API()
	}
	spec := func(volume, command string) map[string]any {
		return map[string]any{"Image": image, "Cmd": []string{"sh", "-c", command}, "HostConfig": map[string]any{"VolumeDriver": "shelf", "Binds": []string{volume + ":/d"}}}
	}
	live := create(t, ctx, api, "live", spec("kept", "echo one >/d/f; sleep 1000"))
	short := create(t, ctx, api, "short", spec("brief", "while ! test -e /d/end; do sleep 0.05; done"))
	for _, id := range []string{live, short} {
		do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	}
	plug.awaitMounts(t, 2)

	// The engine is killed; what ran without it ends meanwhile.
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/data/v-brief/end", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, e, short)
	again()
	plug.awaitMounts(t, 1)
	if err := api.Do(ctx, "DELETE", "/volumes/kept?force=1", nil, nil); harness.Status(err) != 409 {
		t.Errorf("a volume in use is removed: %v", err)
	}
	do(t, ctx, api, "DELETE", "/containers/"+short, nil, nil)
	do(t, ctx, api, "DELETE", "/volumes/brief", nil, nil)

	// The plugin is killed while its volume is mounted: it is shown, what runs goes on, and
	// others do not wait.
	plug.kill()
	var shown struct{ Driver string }
	do(t, ctx, api, "GET", "/volumes/kept", nil, &shown)
	if shown.Driver != "shelf" {
		t.Errorf("shown as %+v", shown)
	}
	var list struct {
		Volumes  []struct{ Name string }
		Warnings []string
	}
	do(t, ctx, api, "GET", "/volumes", nil, &list)
	if len(list.Volumes) != 1 || list.Volumes[0].Name != "kept" || len(list.Warnings) != 1 || !strings.HasPrefix(list.Warnings[0], "list shelf: ") {
		t.Errorf("listed %+v", list)
	}
	if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"true"}, "HostConfig": map[string]any{"Binds": []string{"other:/d"}}}); code != 0 || err != nil {
		t.Errorf("another volume: %d, %v", code, err)
	}
	do(t, ctx, api, "DELETE", "/volumes/other", nil, nil)
	// The engine dies, too, and comes back first.
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	again()
	if c, err := api.Inspect(ctx, live); err != nil || !c.State.Running {
		t.Errorf("what ran: %+v, %v", c.State, err)
	}
	plug.start(t)
	do(t, ctx, api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	plug.awaitMounts(t, 0)
	if code, err := runTo(ctx, api, spec("kept", "grep -q one /d/f")); code != 0 || err != nil {
		t.Errorf("its content: %d, %v", code, err)
	}

	// It hangs: who asks for it waits, a removal by force ends that, nobody else notices.
	if err := os.WriteFile(dir+"/data/hang", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	stuck := create2(ctx, api, "stuck", spec("new", "true"))
	begin := time.Now()
	if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"true"}}); code != 0 || err != nil {
		t.Errorf("beside one that hangs: %d, %v", code, err)
	}
	if took := time.Since(begin); took > harness.Patience(20*time.Second) {
		t.Errorf("a container beside a plugin that hangs took %s", took)
	}
	if err := os.Remove(dir + "/data/hang"); err != nil {
		t.Fatal(err)
	}
	if err := <-stuck; err != nil {
		t.Errorf("after it hung: %v", err)
	}
	do(t, ctx, api, "DELETE", "/containers/stuck", nil, nil)
	do(t, ctx, api, "DELETE", "/volumes/new", nil, nil)
	plug.kill()
	if err := api.Do(ctx, "DELETE", "/volumes/kept", nil, nil); err == nil || !strings.Contains(err.Error(), "remove kept: ") {
		t.Errorf("removed without its plugin: %v", err)
	}
	do(t, ctx, api, "DELETE", "/volumes/kept?force=1", nil, nil)
	api.Close()
	noLeaks(t, e)
}

// create2 makes a container beside, and tells how that ended.
func create2(ctx context.Context, api *harness.API, name string, spec map[string]any) <-chan error {
	done := make(chan error, 1)
	go func() { done <- api.Do(ctx, "POST", "/containers/create?name="+name, spec, nil) }()
	return done
}

// awaitEnd waits for the exit record that a monitor writes when no engine is there.
func awaitEnd(t *testing.T, e *harness.Engine, id string) {
	t.Helper()
	until := time.Now().Add(harness.Patience(20 * time.Second))
	for {
		if _, err := os.Stat(filepath.Join(e.DataRoot, "containers", id, "exit-1")); err == nil {
			return
		}
		if time.Now().After(until) {
			t.Fatal("the container does not end")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
