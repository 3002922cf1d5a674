package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
)

// docker runs the stock client against a rig.
func (r *rig) docker(stdin string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", append([]string{"-H", "unix://" + r.socket}, args...)...)
	cmd.Env = []string{"HOME=" + r.t.TempDir(), "PATH=/usr/bin:/bin"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		r.t.Errorf("docker %s hangs", strings.Join(args, " "))
	}
	if err != nil && cmd.ProcessState == nil {
		r.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cat is a container that gives its input back as standard output and counts it
// on standard error.
func cat(done chan<- container.WaitResult) func(context.Context, container.Attach, opened) error {
	return func(ctx context.Context, a container.Attach, open opened) error {
		conn, err := open(false)
		if err != nil {
			return err
		}
		defer conn.Close()
		var in []byte
		if a.Stdin {
			if in, err = io.ReadAll(conn); err != nil {
				return err
			}
		}
		for stream, data := range [][]byte{1: in, 2: fmt.Appendf(nil, "%d bytes\n", len(in))} {
			if len(data) > 0 {
				frame := binary.BigEndian.AppendUint32([]byte{byte(stream), 0, 0, 0}, uint32(len(data)))
				if _, err := conn.Write(append(frame, data...)); err != nil {
					return err
				}
			}
		}
		if done != nil {
			done <- container.WaitResult{ExitCode: 7}
		}
		return nil
	}
}

var dockerCommands = []struct {
	name  string
	args  string
	stdin string
	set   func(r *rig)
	code  int
	out   string // what it holds
	errs  string
}{
	{name: "version", args: "version --format {{.Server.Version}},{{.Server.APIVersion}},{{.Server.MinAPIVersion}}", out: "0.1,1.56,1.24\n"},
	{name: "info", args: "info --format {{.Name}},{{.DefaultRuntime}},{{.ServerErrors}}", out: "host,runc,[]\n"},
	{name: "ps", args: "ps -a --no-trunc --format {{.Names}}|{{.Image}}|{{.Command}}|{{.Ports}}|{{.Mounts}}|{{.Networks}}|{{.State}}", out: "web|app:1|\"sh -c 'exec httpd'\"|9090/tcp, 127.0.0.1:8099->80/tcp|/srv|bridge|running\njob|debian|\"false\"|||none|exited\n"},
	{name: "ps filter", args: "ps -aq --filter status=exited", out: "bbbbbbbbbbbb\n"},
	{name: "ps last", args: "ps -l --size --format {{.Names}},{{.Size}}", out: "web,42B (virtual 4.24kB)\n"},
	{name: "ps bad filter", args: "ps --filter foo=bar", code: 1, errs: "Error response from daemon: invalid filter 'foo'"},
	{name: "inspect", args: "inspect web -f {{.Name}},{{.State.Health.Status}},{{.NetworkSettings.IPAddress}},{{range~$k,$v:=.NetworkSettings.Networks}}{{$k}}={{$v.IPAddress}}{{end}},{{json~.HostConfig.Dns}},{{len~.Mounts}},{{(index~(index~.NetworkSettings.Ports~\"80/tcp\")~0).HostPort}}", out: "/web,healthy,172.17.0.2,bridge=172.17.0.2,[],1,8099\n"},
	{name: "inspect image", args: "image inspect debian -f {{.Id}}", out: "sha256:1111"},
	{name: "inspect neither", args: "inspect nope", code: 1, out: "[]", errs: "No such object: nope"},
	{name: "images", args: "images --format {{.Repository}}:{{.Tag}}", out: "app:1\ndebian:latest\n<none>:<none>\n"}, // the client shuffles repositories of one image
	{name: "history", args: "history -q debian", out: "1\n<missing>\n"},
	{name: "tag", args: "tag debian x:1"},
	{name: "rmi", args: "rmi debian", out: "Untagged: debian\nDeleted: sha256:feed\n"},
	{name: "image prune", args: "image prune -f", out: "deleted: sha256:3333333333333333333333333333333333333333333333333333333333333333\n\nTotal reclaimed space: 7B\n"},
	{name: "container prune", args: "container prune -f", out: "Total reclaimed space: 84B\n"},
	{name: "import", args: "import - foo:1", stdin: "tar", out: "sha256:feed\n"},
	{name: "load", args: "load", stdin: strings.Repeat("tar", 1<<20), out: "Loaded image: debian:latest\n"},
	{name: "save", args: "save debian app:1", out: "tar of debian app:1"},
	{name: "pull", args: "pull debian", set: func(r *rig) { r.server.cfg.Registries = fakeRegistries{} }, code: 1, errs: "pull access denied for debian"},
	{name: "start", args: "start web", out: "web\n"},
	{name: "stop", args: "stop -t 3 -s INT web", out: "web\n"},
	{name: "kill", args: "kill web", set: func(r *rig) {
		r.con.fail["Kill"] = wrap(errdefs.ErrConflict, "container aaaa is not running")
	}, code: 1, errs: "Error response from daemon: cannot kill container: web: container aaaa is not running"},
	{name: "wait", args: "wait web", set: func(r *rig) { r.con.result <- container.WaitResult{ExitCode: 3} }, out: "3\n"},
	{name: "rm", args: "rm -fv web", out: "web\n"},
	{name: "logs", args: "logs -t web", set: func(r *rig) {
		r.con.lines = func(logs.ReadOptions) logs.Reader {
			return newLog(io.EOF, line("stdout", "one\n"), line("stderr", "two\n"))
		}
	}, out: "2026-11-21T05:48:02.979531953Z one\n", errs: "2026-11-21T05:48:02.979531953Z two\n"},
	{name: "run", args: "run -i --name n debian cat", stdin: "hello", set: func(r *rig) {
		r.con.views[0].Config.OpenStdin = true
		r.con.views[0].ID = "c0ffee"
		r.con.attach = cat(r.con.result)
	}, code: 7, out: "hello", errs: "careful"},
	{name: "run without input", args: "run debian true", set: func(r *rig) {
		r.con.views[0].ID = "c0ffee"
		r.con.attach = cat(r.con.result)
	}, code: 7, errs: "0 bytes\n"},
	{name: "run unknown", args: "run --pull never nope", set: func(r *rig) { r.con.fail["Create"] = noSuch("image: nope:latest") }, code: 125, errs: "No such image: nope:latest"},
	{name: "exec", args: "exec -i web cat", stdin: "hello", set: func(r *rig) {
		code := 4
		r.con.exec = container.Exec{ID: "e1", ExitCode: &code, Config: container.ExecConfig{AttachStdin: true}}
		r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
			return cat(nil)(ctx, container.Attach{Stdin: true}, open)
		}
	}, code: 4, out: "hello", errs: "5 bytes\n"},
	{name: "exec detached", args: "exec -d web ls", set: func(r *rig) { r.con.exec.ID = "e1" }},
	{name: "attach", args: "attach --no-stdin web", set: func(r *rig) { r.con.attach = cat(r.con.result) }, code: 7, errs: "0 bytes\n"},
}

func TestDockerClient(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the docker command on PATH: the stock client is not tried here")
	}
	for _, tt := range dockerCommands {
		t.Run(tt.name, func(t *testing.T) {
			prepare := []func(*rig){}
			if tt.set != nil {
				prepare = append(prepare, tt.set)
			}
			r := newRig(t, prepare...)
			args := strings.Split(tt.args, " ")
			for i := range args { // a space within an argument
				args[i] = strings.ReplaceAll(args[i], "~", " ")
			}
			out, errs, code := r.docker(tt.stdin, args...)
			if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.errs) {
				t.Errorf("code %d, want %d\n%s\n%s", code, tt.code, out, errs)
			}
		})
	}
}

func TestDockerEvents(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the docker command on PATH: the stock client is not tried here")
	}
	r := newRig(t)
	for _, m := range someEvents() {
		r.events.Publish(m)
	}
	out, errs, code := r.docker("", "events", "--since", "1h", "--until", "-1s", "--filter", "type=container", "--filter", "event=create", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}")
	if code != 0 || out != "container create web\n" {
		t.Errorf("%d %q %q", code, out, errs)
	}
}
