package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// knownTools are measures by programs whose figures others know: wrk and iperf3, as far as
// they are installed. They add to the ways what these need.
func (b *bench) knownTools(ctx context.Context, ways map[*end][]way, dir, own string) (out []rated, err error) {
	if wrk, err := exec.LookPath("wrk"); err == nil {
		for e, list := range ways {
			for i := range list {
				w, err := b.serve(ctx, e, dir, own, list[i].name)
				if err != nil {
					return nil, fmt.Errorf("server for wrk at %s: %w", e.name, err)
				}
				list[i].wrk = w.web
			}
		}
		out = append(out, rated{"wrk, connections kept", "/s", asked(wrk)}, rated{"wrk, each on a new connection", "/s", asked(wrk, "-H", "Connection: close")})
	} else {
		fmt.Fprintln(os.Stderr, "bench: wrk is not installed: what it would measure is left out")
	}
	iperf, err := exec.LookPath("iperf3")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: iperf3 is not installed: what it would measure is left out")
		return out, nil
	}
	for _, e := range b.ends {
		if err := b.serveIperf(ctx, e, iperf, ways[e], own); err != nil {
			return nil, fmt.Errorf("iperf3 at %s: %w", e.name, err)
		}
	}
	return append(out, rated{"iperf3, to the container", "MB/s", streamed(iperf)}, rated{"iperf3, from the container", "MB/s", streamed(iperf, "-R")}), nil
}

// asked has wrk ask as long as a sample takes, with as many connections as ours.
func asked(wrk string, more ...string) func(context.Context, way) (float64, error) {
	return func(ctx context.Context, w way) (float64, error) {
		args := append([]string{"-t2", fmt.Sprintf("-c%d", netClients), fmt.Sprintf("-d%ds", int(netSpan.Seconds()))}, more...)
		out, err := exec.CommandContext(ctx, wrk, append(args, "http://"+w.wrk+"/")...).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("wrk: %w\n%s", err, out)
		}
		return wrkRate(out)
	}
}

var wrkLine = regexp.MustCompile(`(?m)^Requests/sec:\s+([0-9.]+)`)

// wrkRate reads the answers a second; answers that are none are an error.
func wrkRate(out []byte) (float64, error) {
	m := wrkLine.FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("Non-2xx or 3xx responses")) || bytes.Contains(out, []byte("Socket errors")) {
		return 0, fmt.Errorf("wrk says\n%s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// serveIperf runs the server of iperf3, which is this machine's, in a container at one end.
func (b *bench) serveIperf(ctx context.Context, e *end, iperf string, ways []way, own string) error {
	const port = "5201"
	s := b.spec("bridge", iperf, "-s")
	for _, dir := range []string{"/usr", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			s.HostConfig.Binds = append(s.HostConfig.Binds, dir+":"+dir+":ro")
		}
	}
	s.HostConfig.PublishAllPorts = true
	s.ExposedPorts = map[string]struct{}{port + "/tcp": {}}
	id, err := e.create(ctx, s)
	if err != nil {
		return err
	}
	if err := e.start(ctx, id); err != nil {
		return err
	}
	direct, err := e.reach(ctx, id, port, own, ownIP)
	if err != nil {
		return err
	}
	for i := range ways {
		if ways[i].iperf, err = e.reach(ctx, id, port, own, ways[i].name); err != nil {
			return err
		}
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = streamed(iperf)(ctx, way{iperf: direct}); err == nil || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
	}
}

// streamed has iperf3 send on one connection as long as a sample takes.
func streamed(iperf string, more ...string) func(context.Context, way) (float64, error) {
	return func(ctx context.Context, w way) (float64, error) {
		host, port, err := net.SplitHostPort(w.iperf)
		if err != nil {
			return 0, err
		}
		args := append([]string{"-J", "-c", host, "-p", port, "-t", fmt.Sprint(int(netSpan.Seconds()))}, more...)
		out, err := exec.CommandContext(ctx, iperf, args...).Output()
		rate, wrong := iperfRate(out)
		return rate, errors.Join(wrong, err)
	}
}

// iperfRate reads what was received, in MB a second.
func iperfRate(out []byte) (float64, error) {
	var said struct {
		Error string
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	switch err := json.Unmarshal(out, &said); {
	case err != nil:
		return 0, fmt.Errorf("iperf3 says %q: %w", out, err)
	case said.Error != "":
		return 0, fmt.Errorf("iperf3: %s", said.Error)
	case said.End.Received.Rate <= 0:
		return 0, errors.New("iperf3 has received nothing")
	}
	return said.End.Received.Rate / 8e6, nil
}
