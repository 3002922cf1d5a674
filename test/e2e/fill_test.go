package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"golang.org/x/sys/unix"
)

// TestFillKilled kills the engine while it makes a container and fills its volume from the image:
// nothing is left of that container, and the next one has the volume whole, or, where its
// image has nothing for it, empty.
func TestFillKilled(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	api := e.API()
	defer func() { api.Close() }()
	const files = 2500
	maker := create(t, ctx, api, "maker", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", fmt.Sprintf("mkdir /full && cd /full && i=0 && while [ $i -lt %d ]; do echo $i >$i; i=$((i+1)); done", files)}})
	do(t, ctx, api, "POST", "/containers/"+maker+"/start", nil, nil)
	var ended struct{ StatusCode int }
	do(t, ctx, api, "POST", "/containers/"+maker+"/wait", nil, &ended)
	if ended.StatusCode != 0 {
		t.Fatalf("making files: %d", ended.StatusCode)
	}
	do(t, ctx, api, "POST", "/commit?container=maker&repo=full", map[string]any{}, nil)
	do(t, ctx, api, "DELETE", "/containers/maker", nil, nil)
	for _, other := range []bool{false, true} {
		volume := fmt.Sprintf("vol-%v", other)
		spec := map[string]any{"Image": "full", "Cmd": []string{"sleep", "1000"}, "Volumes": map[string]any{"/full": map[string]any{}}, "HostConfig": map[string]any{"Binds": []string{volume + ":/full", volume + ":/v"}}}
		data := e.DataRoot + "/volumes/" + volume + "/_data"
		go api.Do(ctx, "POST", "/containers/create?name="+volume, spec, nil)
		for until := time.Now().Add(harness.Patience(20 * time.Second)); ; time.Sleep(time.Millisecond) {
			part, _ := os.ReadDir(data + "/.escale-fill")
			if all, err := os.ReadDir(data); len(part) > 10 || err == nil && len(all) > 1 { // under way, or too late
				break
			}
			if time.Now().After(until) {
				t.Fatal("the volume is not filled")
			}
		}
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(data + "/.escale-fill")
		late := err != nil
		if late {
			t.Logf("the kill came late: %v", err)
		}
		api.Close()
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		api = e.API()
		var left []struct{}
		do(t, ctx, api, "GET", "/containers/json?all=1", nil, &left)
		if len(left) != 0 && !late {
			t.Errorf("%d containers are left", len(left))
		}
		if len(left) != 0 {
			do(t, ctx, api, "DELETE", "/containers/"+volume, nil, nil)
		}
		want := files
		if other && !late {
			want, spec = 0, map[string]any{"Image": image, "Cmd": []string{"sleep", "1000"}, "HostConfig": map[string]any{"Binds": []string{volume + ":/v"}}}
		}
		next := create(t, ctx, api, volume, spec)
		if list, err := os.ReadDir(data); want > 0 && (err != nil || len(list) != want) {
			t.Errorf("before the start there are %d files, want %d: %v", len(list), want, err)
		}
		do(t, ctx, api, "POST", "/containers/"+next+"/start", nil, nil)
		if execIn(t, ctx, api, next, fmt.Sprintf("test $(ls -A /v | wc -l) = %d", want)) != 0 {
			list, _ := os.ReadDir(data)
			t.Errorf("there are %d files, want %d", len(list), want)
		}
		do(t, ctx, api, "DELETE", "/containers/"+next+"?force=1&v=1", nil, nil)
		do(t, ctx, api, "DELETE", "/volumes/"+volume, nil, nil)
	}
	do(t, ctx, api, "DELETE", "/images/full", nil, nil)
	api.Close()
	noLeaks(t, e)
}

// TestPortsOfALiveConnect: ports that are published first when a running container is
// connected outlive the engine in the container's monitor, as those of a start.
func TestPortsOfALiveConnect(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	defer func() { api.Close() }()
	do(t, ctx, api, "POST", "/networks/create", map[string]any{"Name": "shut", "Internal": true}, nil)
	_, text, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	page := func() {
		t.Helper()
		c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for until := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
			res, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
			if err == nil {
				res.Body.Close()
				return
			}
			if time.Now().After(until) {
				t.Fatal(err)
			}
		}
	}
	id := create(t, ctx, api, "live", map[string]any{
		"Image": image, "Cmd": []string{"httpd", "-f", "-h", "/var/www"}, "ExposedPorts": map[string]any{"80/tcp": map[string]any{}},
		"HostConfig": map[string]any{"NetworkMode": "shut", "PortBindings": map[string]any{"80/tcp": []any{map[string]string{"HostPort": fmt.Sprint(port)}}}},
	})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	if !bindable(t, port) {
		t.Error("a port is held on an internal network")
	}
	do(t, ctx, api, "POST", "/networks/bridge/connect", map[string]any{"Container": id}, nil)
	page()
	api.Close()
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	if bindable(t, port) {
		t.Error("nobody holds the port while the engine is away")
	}
	page()
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	api = e.API()
	page()
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	do(t, ctx, api, "DELETE", "/networks/shut", nil, nil)
	for until := time.Now().Add(harness.Patience(10 * time.Second)); !bindable(t, port); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the port is held for nobody")
		}
	}
	api.Close()
	noLeaks(t, e)
}

// bindable tells whether no program holds a TCP port.
func bindable(t *testing.T, port int) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	if err != nil && err != unix.EADDRINUSE {
		t.Fatal(err)
	}
	return err == nil
}
