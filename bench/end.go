package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// end is one of the two endpoints.
type end struct {
	name          string // "A", "B"
	host          string
	network, addr string
	version       string // what /version says
	pids          string // -pids-a, -pids-b
	http          *http.Client
}

// connect makes a client of host and asks its version.
func connect(ctx context.Context, host, name string) (*end, error) {
	network, addr, ok := strings.Cut(host, "://")
	if !ok || (network != "unix" && network != "tcp") {
		return nil, fmt.Errorf("endpoint %q: unix:///path or tcp://address:port", host)
	}
	e := &end{name: name, host: host, network: network, addr: addr}
	e.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 32, DisableCompression: true,
	}}
	var v struct {
		Version    string
		APIVersion string `json:"ApiVersion"`
		Platform   struct{ Name string }
	}
	if err := e.call(ctx, "GET", "/version", nil, &v); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", host, err)
	}
	e.version = strings.TrimSpace(fmt.Sprintf("%s %s, API %s", v.Platform.Name, v.Version, v.APIVersion))
	return e, nil
}

// open sends a request and returns the answer; the caller closes its body. An
// answer of 400 or more is an error.
func (e *end) open(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r, kind = b, "application/x-tar"
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	if strings.HasSuffix(req.URL.Path, "/push") {
		req.Header.Set("X-Registry-Auth", "e30=") // {}; older engines insist on one
	}
	res, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 400 {
		defer res.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16))
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(b))
	}
	return res, nil
}

// call sends a request and decodes the answer into out; out nil drops it.
func (e *end) call(ctx context.Context, method, path string, body, out any) error {
	res, err := e.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// progress sends a request whose answer is a stream of JSON messages, and
// returns the error one of them holds.
func (e *end) progress(ctx context.Context, method, path string, body io.Reader) error {
	res, err := e.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for d := json.NewDecoder(res.Body); ; {
		var m struct{ Error string }
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if m.Error != "" {
			return fmt.Errorf("%s %s: %s", method, path, m.Error)
		}
	}
}

// push pushes an image, with no login.
func (e *end) push(ctx context.Context, repo, tag string) error {
	return e.progress(ctx, "POST", "/images/"+repo+"/push?tag="+tag, nil)
}

// spec is what bench asks of a container.
type spec struct {
	Image        string
	Cmd          []string
	Labels       map[string]string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	HostConfig   struct {
		NetworkMode     string   `json:",omitempty"`
		Binds           []string `json:",omitempty"`
		AutoRemove      bool
		PublishAllPorts bool
		PortBindings    map[string][]portBinding `json:",omitempty"`
	}
}

// portBinding is where a port is published; an empty port is any that is free.
type portBinding struct{ HostIP, HostPort string }

// create makes a container and returns its id.
func (e *end) create(ctx context.Context, s spec) (string, error) {
	var res struct{ ID string }
	err := e.call(ctx, "POST", "/containers/create", s, &res)
	return res.ID, err
}

func (e *end) start(ctx context.Context, id string) error {
	return e.call(ctx, "POST", "/containers/"+id+"/start", nil, nil)
}

func (e *end) remove(ctx context.Context, id string) error {
	return e.call(ctx, "DELETE", "/containers/"+id+"?force=1&v=1", nil, nil)
}

// wait blocks until the container is not running and returns its exit code.
func (e *end) wait(ctx context.Context, id string) (int, error) {
	var res struct{ StatusCode int }
	err := e.call(ctx, "POST", "/containers/"+id+"/wait", nil, &res)
	return res.StatusCode, err
}

// list returns the ids of all containers that bear label.
func (e *end) list(ctx context.Context, label string) ([]string, error) {
	f, err := json.Marshal(map[string][]string{"label": {label}})
	if err != nil {
		return nil, err
	}
	var res []struct{ ID string }
	if err := e.call(ctx, "GET", "/containers/json?all=1&filters="+url.QueryEscape(string(f)), nil, &res); err != nil {
		return nil, err
	}
	ids := make([]string, len(res))
	for i, c := range res {
		ids[i] = c.ID
	}
	return ids, nil
}

// cli runs the client program against the endpoint.
func (e *end) cli(ctx context.Context, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, append([]string{"-H", e.host}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CLI_HINTS=false")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", path, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// owner is the process that listens on the endpoint's unix socket.
func (e *end) owner(ctx context.Context) (int, error) {
	if e.network != "unix" {
		return 0, fmt.Errorf("endpoint %s: give -pids-%s, a tcp socket does not tell its owner", e.host, strings.ToLower(e.name))
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", e.addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if serr != nil {
		return 0, serr
	}
	return int(cred.Pid), nil
}
