package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// interchange is an engine with its registry, between which and other programs
// images go to and fro.
type interchange struct {
	e    *harness.Engine
	addr string // of the registry
	dir  string
	api  *harness.API
	run  func(args ...string) (string, error) // escale
}

// must runs a program and gives what it printed.
func (x *interchange) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = x.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
	}
	return string(out)
}

func (x *interchange) escale(t *testing.T, args ...string) string {
	t.Helper()
	out, err := x.run(args...)
	if err != nil {
		t.Fatalf("escale %v: %v\n%s", args, err, out)
	}
	return out
}

// says runs an image and removes it.
func (x *interchange) says(t *testing.T, name string) {
	t.Helper()
	if got := runImage(t.Context(), t, x.api, name, "echo", "whole"); got != "whole\n" {
		t.Errorf("%s says %q", name, got)
	}
	x.escale(t, "rmi", name)
}

// digest is that of the manifest or index that a tag of the registry stands for.
func (x *interchange) digest(t *testing.T, repo, tag string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+x.addr+"/v2/"+repo+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"} {
		req.Header.Add("Accept", kind)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s:%s: %s", repo, tag, res.Status)
	}
	return res.Header.Get("Docker-Content-Digest")
}

// TestInterchange: images go to other programs and come from them, in every form
// that both know.
func TestInterchange(t *testing.T) {
	addr := freePort(t)
	e := start(t, harness.Options{Args: []string{"--registry", addr}})
	x := &interchange{e: e, addr: addr, dir: t.TempDir(), api: e.API()}
	defer x.api.Close()
	x.run = cli(t, clients()["escale"], e.Host(), t.TempDir())
	for name, text := range map[string]string{
		"one/Dockerfile":  from + "RUN echo more > /more\n",
		"many/Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n", "many/f-amd64": "amd64", "many/f-arm64": "arm64",
	} {
		file := filepath.Join(x.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x.escale(t, "build", "-q", "-t", addr+"/lab/one:1", filepath.Join(x.dir, "one"))
	x.escale(t, "push", addr+"/lab/one:1")
	x.escale(t, "save", "-o", filepath.Join(x.dir, "one.tar"), addr+"/lab/one:1")
	x.escale(t, "build", "-q", "--platform", "linux/amd64,linux/arm64", "-t", addr+"/lab/many:1", filepath.Join(x.dir, "many"))
	x.escale(t, "push", addr+"/lab/many:1")
	x.escale(t, "save", "-o", filepath.Join(x.dir, "many.tar"), addr+"/lab/many:1")
	t.Run("skopeo", x.skopeo)
	t.Run("podman", x.podman)
	t.Run("dockerd", x.dockerd)
}

// skopeo copies between all of its transports, and back.
func (x *interchange) skopeo(t *testing.T) {
	program, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo (apt-get install skopeo)")
	}
	copies := func(all bool, from, to string) {
		t.Helper()
		args := []string{"copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", from, to}
		if all {
			args = append(args, "--all")
		}
		x.must(t, program, args...)
	}
	reg := func(ref string) string { return "docker://" + x.addr + "/lab/" + ref }
	file := func(name string) string { return filepath.Join(x.dir, name) }
	// One image, out by archive and registry, in by both.
	for i, to := range []string{"docker-archive:" + file("1.tar") + ":lab/s0:1", "oci-archive:" + file("2.tar") + ":docker.io/lab/s1:1"} {
		for _, source := range []string{"docker-archive:" + file("one.tar"), "oci-archive:" + file("one.tar"), reg("one:1")} {
			copies(false, source, to)
			name := fmt.Sprintf("lab/s%d:1", i)
			if out := x.escale(t, "load", "-i", file(fmt.Sprintf("%d.tar", i+1))); !strings.Contains(out, "Loaded image: "+name) {
				t.Errorf("%s to %s: %s", source, to, out)
			}
			x.says(t, name)
			if err := os.Remove(file(fmt.Sprintf("%d.tar", i+1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, via := range []string{"docker-archive:" + file("3.tar") + ":lab/x:1", "oci-archive:" + file("4.tar") + ":lab/x:1", "dir:" + file("5"), "oci:" + file("6") + ":1"} {
		copies(false, reg("one:1"), via)
		copies(false, via, reg(fmt.Sprintf("back%d:1", i)))
		x.escale(t, "pull", fmt.Sprintf("%s/lab/back%d:1", x.addr, i))
		x.says(t, fmt.Sprintf("%s/lab/back%d:1", x.addr, i))
	}
	// Several platforms: nothing of the index may change on the way.
	want := x.digest(t, "lab/many", "1")
	for i, via := range []string{"dir:" + file("7"), "oci:" + file("8") + ":1", "oci-archive:" + file("9.tar") + ":1"} {
		copies(true, reg("many:1"), via)
		copies(true, via, reg(fmt.Sprintf("all%d:1", i)))
		if got := x.digest(t, fmt.Sprintf("lab/all%d", i), "1"); got != want {
			t.Errorf("by %s: index %s, was %s", via, got, want)
		}
	}
	copies(true, "oci-archive:"+file("many.tar"), reg("saved:1"))
	if got := x.digest(t, "lab/saved", "1"); got != want {
		t.Errorf("the saved index is %s, was %s", got, want)
	}
	if out := x.escale(t, "load", "--platform", "linux/arm64", "-i", file("9.tar")); !strings.Contains(out, "Loaded image") {
		t.Errorf("an archive of an index: %s", out)
	}
}

// podman is given archives and makes some.
func (x *interchange) podman(t *testing.T) {
	program, err := exec.LookPath("podman")
	if err != nil {
		t.Skip("needs podman (apt-get install podman)")
	}
	dir := t.TempDir()
	podman := func(args ...string) string {
		t.Helper()
		return x.must(t, program, append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
			"--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)...)
	}
	podman("load", "-i", filepath.Join(x.dir, "one.tar"))
	podman("tag", x.addr+"/lab/one:1", "localhost/lab/podman:1")
	for _, form := range []string{"docker-archive", "oci-archive"} {
		file := filepath.Join(dir, form+".tar")
		podman("save", "--format", form, "-o", file, "localhost/lab/podman:1")
		if out := x.escale(t, "load", "-i", file); !strings.Contains(out, "Loaded image: localhost/lab/podman:1") {
			t.Errorf("%s: %s", form, out)
		}
		x.says(t, "localhost/lab/podman:1")
	}
	podman("push", "--tls-verify=false", "localhost/lab/podman:1", "docker://"+x.addr+"/lab/podman:1")
	x.escale(t, "pull", x.addr+"/lab/podman:1")
	x.says(t, x.addr+"/lab/podman:1")
	podman("pull", "--tls-verify=false", "docker://"+x.addr+"/lab/many:1")
}

// dockerd loads, saves, pushes and pulls. It has no network, so that it changes
// nothing of the machine's, whoever else runs there.
func (x *interchange) dockerd(t *testing.T) {
	program, err := exec.LookPath("dockerd")
	if err != nil {
		t.Skip("needs dockerd (apt-get install docker.io)")
	}
	host := startDockerd(t, program)
	run := cli(t, clients()["escale"], host, t.TempDir()) // either engine is driven by our client
	docker := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("at dockerd: %v: %v\n%s", args, err, out)
		}
		return out
	}
	file := filepath.Join(x.dir, "dockerd.tar")
	one := x.addr + "/lab/one:1"
	id := func(run func(*testing.T, ...string) string, name string) string {
		t.Helper()
		var list []struct{ ID string }
		if err := json.Unmarshal([]byte(run(t, "inspect", name)), &list); err != nil || len(list) != 1 {
			t.Fatalf("inspect of %s: %v", name, err)
		}
		return list[0].ID
	}
	theirs := func(t *testing.T, args ...string) string { t.Helper(); return docker(args...) }
	// By archive, there and back.
	docker("load", "-i", filepath.Join(x.dir, "one.tar"))
	if a, b := id(x.escale, one), id(theirs, one); a != b {
		t.Errorf("the image is %s here and %s there", a, b)
	}
	docker("tag", one, "lab/theirs:1")
	docker("save", "-o", file, "lab/theirs:1")
	if out := x.escale(t, "load", "-i", file); !strings.Contains(out, "Loaded image: lab/theirs:1") {
		t.Errorf("load of what dockerd saved: %s", out)
	}
	if a, b := id(x.escale, "lab/theirs:1"), id(theirs, one); a != b {
		t.Errorf("the image came back as %s, was %s", a, b)
	}
	x.says(t, "lab/theirs:1")
	docker("load", "-i", filepath.Join(x.dir, "many.tar"))
	// By the registry, there and back.
	docker("tag", one, x.addr+"/lab/pushed:1")
	docker("push", x.addr+"/lab/pushed:1")
	x.escale(t, "pull", x.addr+"/lab/pushed:1")
	x.says(t, x.addr+"/lab/pushed:1")
	docker("rmi", "-f", one, "lab/theirs:1", x.addr+"/lab/pushed:1")
	if out := docker("pull", one); !strings.Contains(out, "Status: Downloaded newer image for "+one) {
		t.Errorf("dockerd's pull of what was pushed here: %s", out)
	}
	docker("rmi", "-f", x.addr+"/lab/many:1")
	docker("pull", x.addr+"/lab/many:1") // of the index what is for it
}

// startDockerd starts Debian's docker.io without a network, and ends it with the
// test.
func startDockerd(t *testing.T, program string) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "escale-dockerd-") // short: it has sockets
	if err != nil {
		t.Fatal(err)
	}
	host = "unix://" + filepath.Join(dir, "s")
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o644); err != nil { // not the machine's
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		"--config-file", filepath.Join(dir, "daemon.json"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "-H", host, "-p", filepath.Join(dir, "pid"), "-G", "root")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed or not, it has ended
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(harness.Patience(20 * time.Second)):
			_ = cmd.Process.Kill()
			<-ended
			t.Error("dockerd did not end when told to")
		}
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("dockerd said last:\n%s", text[max(0, len(text)-2000):])
		}
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	api := harness.NewAPI(host)
	defer api.Close()
	for end := time.Now().Add(harness.Patience(20 * time.Second)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if api.Do(t.Context(), "GET", "/_ping", nil, nil) == nil {
			return host
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Skipf("needs a dockerd that starts here; it said:\n%s", text[max(0, len(text)-1000):])
		default:
		}
	}
	t.Fatal("dockerd does not answer")
	return ""
}
