package cli_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeEngine speaks enough of the Docker API to be driven by the command line:
// its containers "run" the small programs of program(). It notes down every
// request.
type fakeEngine struct {
	host string

	mu         sync.Mutex
	containers []*fakeContainer
	images     map[string]bool
	requests   []string
	version    string
}

type fakeContainer struct {
	id, name, image string
	cmd             []string
	tty, openStdin  bool
	autoRemove      bool
	state           string
	code            int
	conns           []net.Conn
	log             []byte // multiplexed
	stdin           *io.PipeReader
	stdinW          *io.PipeWriter
	signals         chan string
	sizes           chan string
	exited, removed chan struct{}
}

func startFake(t testing.TB, dir string) *fakeEngine {
	t.Helper()
	f := &fakeEngine{images: map[string]bool{"debian:latest": true}, version: "1.50"}
	// A socket's path may have 108 bytes: a test's folder is often longer.
	short, err := os.MkdirTemp("", "eng")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(short, "s")
	f.host = "unix://" + path
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	t.Cleanup(func() {
		srv.Close()
		f.mu.Lock()
		for _, c := range f.containers {
			select {
			case c.signals <- "KILL":
			default:
			}
		}
		f.mu.Unlock()
		os.RemoveAll(short)
	})
	return f
}

// note takes a request down and gives the API version that is spoken.
func (f *fakeEngine) note(r *http.Request) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
	return f.version
}

// noted waits up to two seconds for a request with all the words.
func (f *fakeEngine) noted(words ...string) bool {
	for range 200 {
		f.mu.Lock()
		for _, r := range f.requests {
			all := true
			for _, w := range words {
				all = all && strings.Contains(r, w)
			}
			if all {
				f.mu.Unlock()
				return true
			}
		}
		f.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func (f *fakeEngine) find(ref string) *fakeContainer {
	for _, c := range f.containers {
		if c.name == ref || strings.HasPrefix(c.id, ref) {
			return c
		}
	}
	return nil
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, format string, a ...any) {
	answer(w, code, map[string]string{"message": fmt.Sprintf(format, a...)})
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	version := f.note(r)
	w.Header().Set("Api-Version", version)
	w.Header().Set("Ostype", "linux")
	p := r.URL.Path
	if rest, ok := strings.CutPrefix(p, "/v"+version); ok {
		p = rest
	}
	parts := strings.Split(strings.Trim(p, "/"), "/")
	switch parts[0] {
	case "_ping":
		return
	case "containers":
		f.serveContainers(w, r, parts[1:])
	case "exec":
		f.serveExec(w, r, parts[1:])
	case "images":
		f.serveImages(w, r, parts[1:])
	case "version":
		answer(w, 200, map[string]any{"Version": "9.9", "ApiVersion": version, "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64",
			"Components": []any{map[string]any{"Name": "Engine", "Version": "9.9", "Details": map[string]string{"ApiVersion": version, "MinAPIVersion": "1.24"}}}})
	case "info":
		answer(w, 200, map[string]any{"ID": "x", "Containers": 2, "ServerVersion": "9.9", "Driver": "overlayfs", "OSType": "linux", "NCPU": 2,
			"MemTotal": 1 << 30, "Swarm": map[string]any{"LocalNodeState": "inactive"}, "SecurityOptions": []string{"name=seccomp,profile=builtin"}})
	case "events":
		json.NewEncoder(w).Encode(map[string]any{"Type": "container", "Action": "start", "Actor": map[string]any{"ID": "abc",
			"Attributes": map[string]string{"name": "web", "image": "debian"}}, "time": 1700000000, "timeNano": 1700000000000000005})
	default:
		refuse(w, 404, "page not found")
	}
}

func (f *fakeEngine) serveContainers(w http.ResponseWriter, r *http.Request, p []string) {
	switch p[0] {
	case "create":
		f.create(w, r)
		return
	case "json":
		f.list(w, r)
		return
	case "prune":
		answer(w, 200, map[string]any{"ContainersDeleted": []string{"aaa", "bbb"}, "SpaceReclaimed": 2048})
		return
	}
	f.mu.Lock()
	c := f.find(p[0])
	f.mu.Unlock()
	if c == nil {
		refuse(w, 404, "No such container: %s", p[0])
		return
	}
	if len(p) == 1 && r.Method == "DELETE" {
		f.remove(w, r, c)
		return
	}
	switch p[1] {
	case "json":
		f.inspect(w, c)
	case "attach":
		f.attach(w, c)
	case "start":
		f.start(w, c)
	case "wait":
		f.wait(w, r, c)
	case "logs":
		f.mu.Lock()
		log := c.log
		f.mu.Unlock()
		w.Write(log)
	case "kill", "stop":
		if f.stateOf(c) != "running" {
			refuse(w, 409, "Container %s is not running", c.id)
			return
		}
		sig := r.URL.Query().Get("signal")
		if sig == "" {
			sig = map[string]string{"kill": "KILL", "stop": "TERM"}[p[1]]
		}
		ended := f.nextExit(c)
		c.signals <- sig
		if p[1] == "stop" || sig == "KILL" {
			<-ended
		}
		w.WriteHeader(204)
	case "resize":
		q := r.URL.Query()
		if c.sizes != nil {
			c.sizes <- q.Get("h") + "x" + q.Get("w")
		}
	case "rename":
		f.mu.Lock()
		c.name = r.URL.Query().Get("name")
		f.mu.Unlock()
		w.WriteHeader(204)
	case "exec":
		var q struct {
			Cmd         []string
			Tty         bool
			AttachStdin bool
		}
		json.NewDecoder(r.Body).Decode(&q)
		e := &fakeContainer{id: "e" + strconv.Itoa(len(f.containers)), cmd: q.Cmd, tty: q.Tty, openStdin: q.AttachStdin}
		e.init()
		f.mu.Lock()
		f.containers = append(f.containers, e)
		f.mu.Unlock()
		answer(w, 201, map[string]string{"Id": e.id})
	case "stats":
		f.stats(w, r, c)
	case "top":
		answer(w, 200, map[string]any{"Titles": []string{"PID", "CMD"}, "Processes": [][]string{{"7", "sleep 300"}}})
	case "update":
		b, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.requests = append(f.requests, "body "+string(b))
		f.mu.Unlock()
		answer(w, 200, map[string]any{"Warnings": []string{"careful"}})
	case "pause", "unpause", "restart":
		w.WriteHeader(204)
	default:
		refuse(w, 404, "page not found")
	}
}

func (c *fakeContainer) init() {
	c.state = "created"
	c.signals, c.sizes = make(chan string, 16), make(chan string, 64)
	c.exited, c.removed = make(chan struct{}), make(chan struct{})
	c.stdin, c.stdinW = io.Pipe()
}

func (f *fakeEngine) create(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Image          string
		Cmd            []string
		Tty, OpenStdin bool
		HostConfig     struct{ AutoRemove bool }
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, 400, "%v", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	image := q.Image
	if !strings.Contains(image, ":") {
		image += ":latest"
	}
	if !f.images[image] {
		refuse(w, 404, "No such image: %s", image)
		return
	}
	name := r.URL.Query().Get("name")
	if name != "" && f.find(name) != nil {
		refuse(w, 409, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, f.find(name).id)
		return
	}
	n := len(f.containers) + 1
	c := &fakeContainer{id: fmt.Sprintf("%064x", 0xc0ffee00+n), name: name, image: q.Image, cmd: q.Cmd, tty: q.Tty, openStdin: q.OpenStdin, autoRemove: q.HostConfig.AutoRemove}
	if name == "" {
		c.name = fmt.Sprintf("fake_%d", n)
	}
	c.init()
	f.containers = append(f.containers, c)
	answer(w, 201, map[string]any{"Id": c.id, "Warnings": []string{}})
}

func (f *fakeEngine) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []any{}
	for i := len(f.containers) - 1; i >= 0; i-- {
		c := f.containers[i]
		if c.name == "" || c.state != "running" && r.URL.Query().Get("all") == "" && r.URL.Query().Get("limit") == "" {
			continue
		}
		out = append(out, map[string]any{"Id": c.id, "Names": []string{"/" + c.name}, "Image": c.image, "ImageID": "sha256:feed",
			"Command": strings.Join(c.cmd, " "), "Created": time.Now().Add(-3 * time.Hour).Unix(), "State": c.state, "Status": "State " + c.state,
			"Ports":  []any{map[string]any{"PrivatePort": 80, "Type": "tcp"}, map[string]any{"IP": "0.0.0.0", "PrivatePort": 81, "PublicPort": 8081, "Type": "udp"}},
			"Labels": map[string]string{"app": "web"}, "Mounts": []any{}, "SizeRw": 1000, "SizeRootFs": 2000000,
			"NetworkSettings": map[string]any{"Networks": map[string]any{"bridge": map[string]any{}}}})
	}
	answer(w, 200, out)
}

func (f *fakeEngine) inspect(w http.ResponseWriter, c *fakeContainer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer(w, 200, map[string]any{"Id": c.id, "Name": "/" + c.name, "State": map[string]any{"Status": c.state, "Running": c.state == "running", "ExitCode": c.code},
		"Config": map[string]any{"Tty": c.tty, "OpenStdin": c.openStdin, "Cmd": c.cmd}, "HostConfig": map[string]any{"AutoRemove": c.autoRemove},
		"NetworkSettings": map[string]any{"Ports": map[string]any{
			"443/tcp": []any{map[string]any{"HostIp": "127.0.0.1", "HostPort": "8443"}}, "80/tcp": nil,
			"81/udp": []any{map[string]any{"HostIp": "0.0.0.0", "HostPort": "8081"}, map[string]any{"HostIp": "::", "HostPort": "8081"}}}}})
}

// hijack turns the request into a raw connection.
func hijack(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter) {
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	return conn, rw
}

func (f *fakeEngine) attach(w http.ResponseWriter, c *fakeContainer) {
	f.mu.Lock() // or a client that starts it at once would miss what it says first
	conn, rw := hijack(w)
	c.conns = append(c.conns, conn)
	f.mu.Unlock()
	go func() {
		if c.openStdin {
			f.mu.Lock()
			w := c.stdinW
			f.mu.Unlock()
			io.Copy(w, rw)
			if !c.tty { // a terminal stays when one who sat at it leaves
				w.Close()
			}
		}
	}()
}

// output writes to whoever is attached, and to the log.
type output struct {
	f      *fakeEngine
	c      *fakeContainer
	stream byte
}

func (o output) Write(p []byte) (int, error) {
	b := p
	if !o.c.tty {
		b = make([]byte, 8+len(p))
		b[0] = o.stream
		binary.BigEndian.PutUint32(b[4:], uint32(len(p)))
		copy(b[8:], p)
	}
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	o.c.log = append(o.c.log, b...)
	for _, conn := range o.c.conns {
		conn.Write(b)
	}
	return len(p), nil
}

func (f *fakeEngine) start(w http.ResponseWriter, c *fakeContainer) {
	if len(c.cmd) > 0 && c.cmd[0] == "nosuch" {
		refuse(w, 400, `failed to create task: exec: "nosuch": executable file not found in $PATH: unknown`)
		if c.autoRemove {
			f.drop(c)
		}
		return
	}
	if len(c.cmd) > 0 && c.cmd[0] == "denied" {
		refuse(w, 400, `failed to create task: exec: "denied": permission denied: unknown`)
		return
	}
	f.mu.Lock()
	c.state = "running"
	f.mu.Unlock()
	go f.run(c)
	w.WriteHeader(204)
}

func (f *fakeEngine) run(c *fakeContainer) {
	code := program(c, output{f, c, 1}, output{f, c, 2})
	f.mu.Lock()
	c.state, c.code = "exited", code
	for _, conn := range c.conns {
		conn.Close()
	}
	c.stdin.Close()
	c.conns = nil
	c.stdin, c.stdinW = io.Pipe() // for the next start
	ended := c.exited
	c.exited = make(chan struct{})
	close(ended)
	f.mu.Unlock()
	if c.autoRemove {
		f.drop(c)
	}
}

func (f *fakeEngine) stateOf(c *fakeContainer) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.state
}

func (f *fakeEngine) nextExit(c *fakeContainer) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.exited
}

func (f *fakeEngine) drop(c *fakeContainer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.containers {
		if x == c {
			f.containers = append(f.containers[:i:i], f.containers[i+1:]...)
			close(c.removed)
		}
	}
	for _, conn := range c.conns {
		conn.Close()
	}
}

func (f *fakeEngine) wait(w http.ResponseWriter, r *http.Request, c *fakeContainer) {
	done := f.nextExit(c)
	f.mu.Lock()
	stopped := c.state != "running"
	f.mu.Unlock()
	cond := r.URL.Query().Get("condition")
	if cond == "removed" {
		done = c.removed
	}
	// Only now: the client takes the header for the promise that it is told.
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	if cond != "" || !stopped {
		select {
		case <-done:
		case <-r.Context().Done():
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(w, `{"StatusCode":%d}`, c.code)
}

func (f *fakeEngine) remove(w http.ResponseWriter, r *http.Request, c *fakeContainer) {
	if f.stateOf(c) == "running" {
		if r.URL.Query().Get("force") == "" {
			refuse(w, 409, "cannot remove container %q: container is running: stop the container before removing or force remove", c.name)
			return
		}
		ended := f.nextExit(c)
		c.signals <- "KILL"
		<-ended
	}
	f.drop(c)
	w.WriteHeader(204)
}

func (f *fakeEngine) serveExec(w http.ResponseWriter, r *http.Request, p []string) {
	f.mu.Lock()
	c := f.find(p[0])
	f.mu.Unlock()
	switch p[1] {
	case "start":
		var q struct{ Detach bool }
		json.NewDecoder(r.Body).Decode(&q)
		if q.Detach {
			w.WriteHeader(200)
			return
		}
		f.attach(w, c)
		f.mu.Lock()
		c.state = "running"
		f.mu.Unlock()
		go f.run(c)
	case "json":
		for f.stateOf(c) == "running" {
			time.Sleep(time.Millisecond)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		answer(w, 200, map[string]any{"ID": c.id, "ExitCode": c.code, "Running": false})
	case "resize":
		c.sizes <- r.URL.Query().Get("h") + "x" + r.URL.Query().Get("w")
	}
}
