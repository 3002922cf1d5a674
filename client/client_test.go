package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
)

func engine(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.47")
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/_ping", "/base/_ping":
	case "/v1.47/echo", "/base/v1.47/echo":
		b, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode(map[string]string{"body": string(b), "q": r.URL.RawQuery, "agent": r.UserAgent(), "x": r.Header.Get("X-Own"), "method": r.Method})
	case "/v1.47/none":
		w.WriteHeader(404)
		io.WriteString(w, `{"message":"No such thing: none"}`)
	case "/v1.47/plain":
		w.WriteHeader(409)
		io.WriteString(w, "busy\n")
	default:
		w.WriteHeader(500)
	}
}

func try(t *testing.T, o Options) {
	t.Helper()
	o.Headers, o.UserAgent = map[string]string{"X-Own": "own"}, "me"
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Do(context.Background(), "POST", "/echo", map[string][]string{"a": {"b"}}, map[string]int{"n": 1})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"body": `{"n":1}`, "q": "a=b", "agent": "me", "x": "own", "method": "POST"} {
		if got[k] != want {
			t.Errorf("%s: %q, want %q", k, got[k], want)
		}
	}
	if c.ClientVersion() != "1.47" || c.Host() != o.Host {
		t.Errorf("version %s, host %s", c.ClientVersion(), c.Host())
	}
	for path, want := range map[string]string{"/none": "Error response from daemon: No such thing: none", "/plain": "Error response from daemon: busy"} {
		if _, err := c.Do(context.Background(), "GET", path, nil, nil); (err == nil || err.Error() != want) && !strings.Contains(o.Host, "base") {
			t.Errorf("%s: %v", path, err)
		} else if path == "/none" && !errdefs.IsNotFound(err) && !strings.Contains(o.Host, "base") {
			t.Errorf("%s: kind of %v", path, err)
		}
	}
}

func TestUnix(t *testing.T) {
	dir, err := os.MkdirTemp("", "cl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(engine)}
	go srv.Serve(l)
	defer srv.Close()
	try(t, Options{Host: "unix://" + dir + "/s"})
}

func TestTCP(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(engine))
	defer srv.Close()
	host := "tcp://" + srv.Listener.Addr().String()
	try(t, Options{Host: host})
	try(t, Options{Host: host + "/base"})
}

func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(engine))
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	host := "tcp://" + srv.Listener.Addr().String()
	try(t, Options{Host: host, TLS: &tls.Config{RootCAs: pool}})
	c, err := New(Options{Host: host, TLS: &tls.Config{RootCAs: x509.NewCertPool()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(context.Background(), "GET", "/echo", nil, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	for _, host := range []string{"unix:///nosuch/dir/sock", "tcp://127.0.0.1:1"} {
		c, err := New(Options{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Do(context.Background(), "GET", "/echo", nil, nil); !moby.IsErrConnectionFailed(err) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestBadHosts(t *testing.T) {
	for _, host := range []string{"x", "foo://x", "ssh://", "ssh://u:p@h", "ssh://h?q=1", "ssh://h#f", "ssh://h/a'b"} {
		if _, err := New(Options{Host: host}); err == nil {
			t.Errorf("%s is accepted", host)
		}
	}
}

func TestSSHArgs(t *testing.T) {
	got, err := sshArgs("ssh://me@h:22/run/e.sock")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"-o", "ConnectTimeout=30", "-T", "-l", "me", "-p", "22", "--", "h"}
	if !slices.Equal(got[:len(want)], want) || !strings.Contains(got[len(want)], `escale -H "unix:///run/e.sock" system dial-stdio`) {
		t.Errorf("%q", got)
	}
}

func TestCommandConn(t *testing.T) {
	c, err := dialCommand("cat")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "there and back")
	c.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "there and back" {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	if c, err = dialCommand("sh", "-c", "echo sorry >&2; exit 3"); err != nil {
		t.Fatal(err)
	}
	if _, err = io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "exit status 3: sorry") {
		t.Errorf("%v", err)
	}
	c.Close()
	c.Close()
	// Closing ends a command that would go on.
	if c, err = dialCommand("sleep", "100"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if !c.(*commandConn).cmd.ProcessState.Exited() && c.(*commandConn).cmd.ProcessState.String() != "signal: terminated" {
		t.Error(c.(*commandConn).cmd.ProcessState)
	}
}
