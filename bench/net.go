package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// netSpan is how long each sample of the network measures takes.
const netSpan = time.Second

// netClients are the connections that are used at once.
const netClients = 16

// published measures what goes through ports that are published: from this host by
// 127.0.0.1 and by an address of its own, and to the container itself.
func published(ctx context.Context, b *bench) error {
	dir, err := os.MkdirTemp("", "escale-bench-net-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := buildServer(ctx, dir); err != nil {
		return err
	}
	own, err := ownAddress()
	if err != nil {
		return err
	}
	ways := map[*end][]way{}
	for _, e := range b.ends {
		for _, name := range []string{ownIP, byHost, byLoopback} {
			w, err := b.serve(ctx, e, dir, own, name)
			if err != nil {
				return fmt.Errorf("network at %s: %w", e.name, err)
			}
			ways[e] = append(ways[e], w)
		}
	}
	measures := []rated{{"small HTTP, connections kept", "/s", requests(true)}, {"small HTTP, each on a new connection", "/s", requests(false)}, {"one stream", "MB/s", stream}}
	known, err := b.knownTools(ctx, ways, dir, own)
	if err != nil {
		return err
	}
	measures = append(measures, known...)
	for i := range ways[b.ends[0]] {
		for _, m := range measures {
			line := b.line(ways[b.ends[0]][i].name+", "+m.what, m.unit, true)
			for round := range max(1, min(5, b.n/3)) + 1 {
				for j, e := range b.ends {
					r, err := m.rate(ctx, ways[e][i])
					if err != nil {
						return fmt.Errorf("%s at %s: %w", line.Name, e.name, err)
					}
					if round > 0 { // the first does not count
						line.Samples[j] = append(line.Samples[j], r)
					}
				}
			}
			b.show(line)
		}
	}
	return nil
}

// rated is a measure of one way.
type rated struct {
	what, unit string
	rate       func(ctx context.Context, w way) (float64, error)
}

// buildServer builds netserver, static, into dir.
func buildServer(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "netserver"), "escale.dev/escale/bench/netserver")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build netserver, in the project's folder: %w\n%s", err, out)
	}
	return nil
}

// ownAddress is an IPv4 address of this host that is not the loopback's.
func ownAddress() (string, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String(), nil
		}
	}
	return "", errors.New("this host has no address but the loopback's")
}

// way is how a server is reached: its small HTTP, its stream, and those for wrk and of iperf3
// where these are installed.
type way struct{ name, web, stream, wrk, iperf string }

// The ways to a server. Each has a container of its own: the kernel remembers tens of
// thousands of connections for two minutes, and those of one way would leave few ports
// to another.
const (
	ownIP      = "container's own address"
	byHost     = "published port by the host's address"
	byLoopback = "published port by 127.0.0.1"
)

// serve runs a server in a container and tells how it is reached in one of the ways.
func (b *bench) serve(ctx context.Context, e *end, dir, own, name string) (way, error) {
	s := b.spec("bridge", "/srv/netserver")
	s.HostConfig.Binds = []string{dir + ":/srv:ro"}
	s.HostConfig.PublishAllPorts = true
	s.ExposedPorts = map[string]struct{}{"80/tcp": {}, "81/tcp": {}}
	id, err := e.create(ctx, s)
	if err != nil {
		return way{}, err
	}
	if err := e.start(ctx, id); err != nil {
		return way{}, err
	}
	w := way{name: name}
	if w.web, err = e.reach(ctx, id, "80", own, name); err != nil {
		return way{}, err
	}
	if w.stream, err = e.reach(ctx, id, "81", own, name); err != nil {
		return way{}, err
	}
	return w, reachable(ctx, w.web)
}

// reach tells how a TCP port of a container on the default network is reached in one of
// the ways.
func (e *end) reach(ctx context.Context, id, port, own, name string) (string, error) {
	var view struct {
		NetworkSettings struct {
			Ports    map[string][]struct{ HostPort string }
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := e.call(ctx, "GET", "/containers/"+id+"/json", nil, &view); err != nil {
		return "", err
	}
	at := view.NetworkSettings.Ports[port+"/tcp"]
	if len(at) == 0 {
		return "", fmt.Errorf("port %s is not published", port)
	}
	switch name {
	case ownIP:
		return net.JoinHostPort(view.NetworkSettings.Networks["bridge"].IPAddress, port), nil
	case byHost:
		return net.JoinHostPort(own, at[0].HostPort), nil
	default:
		return net.JoinHostPort("127.0.0.1", at[0].HostPort), nil
	}
}

// reachable waits, for at most 10 s, until something answers.
func reachable(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := get(ctx, http.DefaultClient, addr)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// requests counts answers a second, on connections that are kept or not.
func requests(kept bool) func(ctx context.Context, w way) (float64, error) {
	return func(ctx context.Context, w way) (float64, error) {
		t := &http.Transport{DisableKeepAlives: !kept, MaxIdleConnsPerHost: netClients}
		defer t.CloseIdleConnections()
		c := &http.Client{Transport: t}
		var n atomic.Int64
		var group sync.WaitGroup
		errs := make([]error, netClients)
		begin := time.Now()
		for i := range netClients {
			group.Go(func() {
				for time.Since(begin) < netSpan && errs[i] == nil {
					if errs[i] = get(ctx, c, w.web); errs[i] == nil {
						n.Add(1)
					}
				}
			})
		}
		group.Wait()
		return float64(n.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
	}
}

func get(ctx context.Context, c *http.Client, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && !bytes.Equal(body, []byte("hello\n")) {
		err = fmt.Errorf("%s answers %q", addr, body)
	}
	return err
}

// stream takes as much as comes by one connection.
func stream(ctx context.Context, w way) (float64, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", w.stream)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin, block, n := time.Now(), make([]byte, 1<<20), 0
	for time.Since(begin) < netSpan {
		k, err := c.Read(block)
		if err != nil {
			return 0, err
		}
		n += k
	}
	return float64(n) / 1e6 / time.Since(begin).Seconds(), nil
}
