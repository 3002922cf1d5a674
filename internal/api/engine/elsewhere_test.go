package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
)

// nodes are other nodes' engines, by id; tasks are where they have containers.
type nodes struct {
	engines map[string]string // sockets: as between nodes, both ends of one know when the other has gone
	tasks   map[string]Placed
}

func (n *nodes) Find(ref string) (Placed, error) {
	if ref == "many" {
		return Placed{}, errdefs.ErrInvalidArgument.WithMessage("multiple IDs found with provided prefix: many")
	}
	p, ok := n.tasks[ref]
	if !ok {
		return p, errdefs.ErrNotFound.WithMessage("task " + ref + " not found")
	}
	return p, nil
}

func (n *nodes) Dial(ctx context.Context, node string) (net.Conn, error) {
	e, ok := n.engines[node]
	if !ok {
		return nil, errdefs.ErrUnavailable.WithMessage("node " + node + " is not available")
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", e)
}

const farID = "f00d"

// twoNodes are a manager and another node, which has a container of a task and one of its own.
func twoNodes(t *testing.T) (near, away *rig) {
	away = newRig(t, func(r *rig) {
		base := r.con.views[0]
		task, own := base, base
		task.ID, task.Name, task.Owner = container.ID(farID+strings.Repeat("0", 60)), "web.1.t1", &container.Owner{Task: "t1"}
		own.ID, own.Name = container.ID("beef"+strings.Repeat("0", 60)), "private"
		r.con.views = []container.View{task, own}
		r.server.cfg.Archives = fakeArchives{new(container.WriteFiles)}
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: away.server.Tasks()}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	near = newRig(t, func(r *rig) {
		at := Placed{Container: string(away.con.views[0].ID), Node: "n2", Task: "t1task"}
		r.server.cfg.Elsewhere = &nodes{map[string]string{"n2": socket}, map[string]Placed{
			"web.1": at, "t1task": at, "t1t": at, "theirs": {Container: string(away.con.views[1].ID), Node: "n2", Task: "t2"},
			"lost": {Container: "x", Node: "n3", Task: "t3"}, "mine": {Container: string(id("a")), Task: "t4"},
		}}
		r.server.cfg.Archives = fakeArchives{new(container.WriteFiles)}
	})
	return near, away
}

func TestElsewhere(t *testing.T) {
	near, away := twoNodes(t)
	away.con.lines = func(o logs.ReadOptions) logs.Reader {
		return &someLines{list: []logs.Line{{Stream: "stdout", Data: []byte("far away\n"), Time: at}}}
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want, did          string // in the answer; what the other node was asked last
	}{
		{"GET", "/containers/web.1/json", "", 200, `"Id":"` + farID, ""},
		{"GET", "/containers/web.1/json?size=1", "", 200, `"SizeRw":42`, ""},
		{"GET", "/containers/t1task/json", "", 404, "No such container: t1task", ""}, // that is the task
		{"GET", "/containers/t1t/json", "", 404, "No such container: t1t", ""},
		{"GET", "/containers/t1task/top?ps_args=aux", "", 200, "sleep", "Top " + fullFar + " aux"},
		{"GET", "/containers/web.1/logs?stdout=1&tail=7", "", 200, "far away", "Logs " + fullFar + " true false 7 false false - -"},
		{"GET", "/containers/web.1/logs", "", 400, "at least one stream", ""},
		{"GET", "/containers/web.1/stats?stream=0", "", 200, `"id":"c0ffee"`, "Stats " + fullFar + " false false"},
		{"GET", "/containers/web.1/archive?path=/f", "", 200, "tar", ""},
		{"GET", "/containers/web.1/archive?path=/g", "", 404, "Could not find the file /g", ""},
		{"HEAD", "/containers/web.1/archive?path=/f", "", 200, "", ""},
		{"PUT", "/containers/web.1/archive?path=/ro", "tar", 403, "read-only", ""},
		{"PUT", "/containers/web.1/archive?path=/d", "tar", 200, "", ""},
		{"GET", "/containers/theirs/json", "", 404, "No such container", ""}, // no task has it
		{"POST", "/containers/theirs/exec", `{"Cmd":["id"]}`, 404, "No such container", ""},
		{"GET", "/containers/lost/json", "", 503, "node n3 is not available", ""},
		{"GET", "/containers/many/json", "", 400, "multiple IDs found", ""},
		{"GET", "/containers/nowhere/json", "", 404, "No such container: nowhere", ""},
		{"GET", "/containers/mine/top", "", 200, "sleep", ""},
		{"POST", "/containers/web.1/stop?t=3", "", 204, "", "Stop " + fullFar + "  3"},
		{"POST", "/containers/web.1/pause", "", 204, "", "Pause " + fullFar},
		{"POST", "/containers/web.1/rename?name=x", "", 404, "", ""}, // what is not for others
		{"POST", "/containers/web.1/exec", `{}`, 400, "No exec command specified", ""},
	} {
		away.con.calls, near.con.fail["Rename"] = nil, noSuch("container: web.1")
		status, header, body := near.do(c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %q; want %d, %q", c.method, c.path, status, body, c.status, c.want)
		}
		if got := away.con.last(); c.did != "" && got != c.did {
			t.Errorf("%s %s: the other node was asked %q, want %q", c.method, c.path, got, c.did)
		}
		if len(header["Api-Version"]) != 1 || len(header["Server"]) != 1 {
			t.Errorf("%s %s: %v", c.method, c.path, header)
		}
		if c.method == "HEAD" && header.Get(statHeader) == "" {
			t.Errorf("a path without its stat: %v", header)
		}
	}
	// What a manager may use of a node is only that, whatever it asks for.
	for _, path := range []string{"/containers/json", "/info", "/images/json", "/containers/" + fullFar + "/attach", "/exec/e1/json", "/containers/private/json"} {
		direct := &http.Client{Transport: near.server.far.http}
		res, err := direct.Get("http://n2" + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

var fullFar = farID + strings.Repeat("0", 60)

// someLines is a log.
type someLines struct{ list []logs.Line }

func (l *someLines) Next() (logs.Line, error) {
	if len(l.list) == 0 {
		return logs.Line{}, io.EOF
	}
	next := l.list[0]
	l.list = l.list[1:]
	return next, nil
}
func (l *someLines) Hold() error  { return nil }
func (l *someLines) Close() error { return nil }

// farExec makes an exec on the other node.
func farExec(t *testing.T, near, away *rig) {
	t.Helper()
	away.con.exec = container.Exec{ID: "e1", Container: away.con.views[0].ID}
	away.con.exec.Config.AttachStdin = true
	if status, _, body := near.do("POST", "/containers/web.1/exec", `{"Cmd":["cat"],"AttachStdin":true,"Tty":true}`); status != 201 || !strings.Contains(body, `"Id":"e1"`) {
		t.Fatalf("%d %s", status, body)
	}
}

// An exec goes on where it was made: its stream, both halves of it, and what is asked of it.
func TestExecElsewhere(t *testing.T) {
	near, away := twoNodes(t)
	farExec(t, near, away)
	for _, c := range []struct {
		method, path, body string
		status             int
		did                string
	}{
		{"POST", "/exec/e1/resize?h=3&w=4", "", 200, "ExecResize e1 3 4"},
		{"GET", "/exec/e1/json", "", 200, ""},
		{"POST", "/exec/e1/start", `{"Detach":true,"Tty":true,"ConsoleSize":[5,6]}`, 200, "ExecStart e1 [5 6] true"},
		{"GET", "/exec/e2/json", "", 404, ""},
	} {
		if status, _, body := near.do(c.method, c.path, c.body); status != c.status || c.did != "" && away.con.last() != c.did {
			t.Errorf("%s %s: %d %s, %s", c.method, c.path, status, body, away.con.last())
		}
	}
	away.con.fail["ExecStart"] = errdefs.ErrConflict.WithMessage("Container web.1.t1 is paused, unpause the container before exec")
	if status, _, body := near.do("POST", "/exec/e1/start", `{"Tty":true}`); status != 409 || !strings.Contains(body, "is paused") {
		t.Errorf("%d %s", status, body)
	}
	delete(away.con.fail, "ExecStart")
	away.con.attach = echo(true)
	word := strings.Repeat("there and back ", 20_000)
	for _, early := range []string{"", "early "} {
		c := near.dial()
		startExec(t, c, `{"Tty":true}`, early)
		in := bufio.NewReader(c)
		if got := head(t, in); !strings.HasPrefix(got, "HTTP/1.1 101 UPGRADED\r\n") || !strings.Contains(got, "application/vnd.docker.raw-stream") {
			t.Fatalf("%q", got)
		}
		go func() {
			_, _ = io.WriteString(c, word)
			_ = c.CloseWrite()
		}()
		all, err := io.ReadAll(in)
		if err != nil || string(all) != early+word+"bye" {
			t.Errorf("%q: %d bytes, %.40q, %v", early, len(all), all, err)
		}
	}
}

func startExec(t *testing.T, c io.Writer, body, early string) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "POST /exec/e1/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s%s", len(body), upgrade, body, early); err != nil {
		t.Fatal(err)
	}
}

// A client that hangs up ends the exec's stream on the other node, and an exec that ends
// the client's.
func TestHangUpElsewhere(t *testing.T) {
	for _, half := range []bool{false, true} {
		near, away := twoNodes(t)
		farExec(t, near, away)
		ended, open := make(chan error, 1), atomic.Bool{}
		away.con.attach = func(ctx context.Context, _ container.Attach, answer opened) error {
			conn, err := answer(true)
			if err != nil {
				return err
			}
			defer conn.Close()
			open.Store(true)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			select {
			case <-ctx.Done():
				ended <- nil
			case <-time.After(15 * time.Second):
				ended <- errors.New("not told")
			}
			return nil
		}
		c := near.dial()
		startExec(t, c, `{"Tty":true}`, "")
		head(t, bufio.NewReader(c))
		if half {
			_ = c.CloseWrite()
			select {
			case <-ended:
				t.Fatal("a client that has closed its half is gone")
			case <-time.After(100 * time.Millisecond):
			}
		}
		c.Close()
		if err := <-ended; err != nil || !open.Load() {
			t.Errorf("half %v: %v", half, err)
		}
	}
}

// Of very many execs the oldest are forgotten.
func TestExecsAreForgotten(t *testing.T) {
	f := newFar(&Server{})
	for i := range maxExecs + 10 {
		f.note(fmt.Sprint(i), "n")
	}
	_, first := f.nodeOf("9")
	_, last := f.nodeOf("10")
	if first || !last || len(f.nodes) != maxExecs || len(f.order) != maxExecs {
		t.Errorf("%v %v %d %d", first, last, len(f.nodes), len(f.order))
	}
}
