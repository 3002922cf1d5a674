package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// syslogServer takes what comes over TCP and keeps the numbers in it.
type syslogServer struct {
	address string

	mu    sync.Mutex
	l     net.Listener
	conns []net.Conn
	lines []string
}

func (s *syslogServer) start(t *testing.T) {
	t.Helper()
	if s.address == "" {
		s.address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.l, s.address = l, l.Addr().String()
	s.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			go s.serve(c)
		}
	}()
}

func (s *syslogServer) serve(c net.Conn) {
	in := bufio.NewScanner(c)
	for in.Scan() {
		_, text, _ := strings.Cut(in.Text(), "]: ")
		s.mu.Lock()
		s.lines = append(s.lines, text)
		s.mu.Unlock()
	}
}

// stop ends the server as a kill does.
func (s *syslogServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.l.Close()
	for _, c := range s.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	s.conns = nil
}

func (s *syslogServer) received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

// TestLogDriverLosesNothing kills the engine and the log server again and again while
// a container writes: every line arrives, and nothing is left behind.
func TestLogDriverLosesNothing(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	api := e.API()
	defer api.Close()
	server := &syslogServer{}
	server.start(t)
	defer server.stop()
	const lines = 3000
	id := create(t, ctx, api, "shipped", map[string]any{
		"Image": image, "Cmd": []string{"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); [ $((i%%10)) = 0 ] && usleep 10000; done; true", lines)},
		"HostConfig": map[string]any{"LogConfig": map[string]any{"Type": "syslog", "Config": map[string]string{"syslog-address": "tcp://" + server.address}}},
	})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	for round := range 3 {
		time.Sleep(400 * time.Millisecond)
		if round != 1 {
			server.stop()
		}
		if round != 2 {
			if err := e.Kill(); err != nil {
				t.Fatal(err)
			}
			api.Close()
			if err := e.Start(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if round != 1 {
			time.Sleep(100 * time.Millisecond)
			server.start(t)
		}
	}
	do(t, ctx, api, "POST", "/containers/"+id+"/wait", nil, nil)
	all := func() bool {
		seen := map[string]bool{}
		for _, l := range server.received() {
			seen[l] = true
		}
		for n := range lines {
			if !seen[strconv.Itoa(n)] {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(20 * time.Second); !all(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("lines are missing; %d came", len(server.received()))
		}
	}
	t.Logf("%d lines written, %d received", lines, len(server.received()))
	stdout, _, err := api.Logs(ctx, id)
	if err != nil || bytes.Count(stdout, []byte("\n")) != lines {
		t.Errorf("logs gave %d lines, %v", bytes.Count(stdout, []byte("\n")), err)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id, nil, nil)
	api.Close()
	noLeaks(t, e)
}

// TestLogDriverOfAutoRemoved: what a container that is removed at its end wrote arrives
// though the server came late.
func TestLogDriverOfAutoRemoved(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	api := e.API()
	defer api.Close()
	server := &syslogServer{}
	server.start(t)
	server.stop()
	id := create(t, ctx, api, "brief", map[string]any{
		"Image": image, "Cmd": []string{"seq", "1", "500"},
		"HostConfig": map[string]any{"AutoRemove": true, "LogConfig": map[string]any{"Type": "syslog", "Config": map[string]string{"syslog-address": "tcp://" + server.address}}},
	})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	for {
		if _, err := api.Inspect(ctx, id); harness.Status(err) == 404 {
			break
		} else if ctx.Err() != nil {
			t.Fatal("the container was not removed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	server.start(t)
	defer server.stop()
	for end := time.Now().Add(15 * time.Second); len(server.received()) < 500; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 500 lines came", len(server.received()))
		}
	}
	api.Close()
	noLeaks(t, e)
}

// TestFollowersOfFastRotation: twenty followers of a container that fills file after
// file. Whatever each of them reads and is told that it missed are all lines, and in
// order; of a log that nobody can outrun, nothing is missed.
func TestFollowersOfFastRotation(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	api := e.API()
	defer api.Close()
	for _, c := range []struct {
		name, script, size string
		lines              int
		all                bool
	}{
		{"paced", "until [ -e /go/now ]; do sleep 0.1; done; i=0; while [ $i -lt 200 ]; do seq $((i*50)) $((i*50+49)); i=$((i+1)); usleep 10000; done", "20k", 10_000, true},
		{"racing", "until [ -e /go/now ]; do sleep 0.1; done; seq 0 299999", "200k", 300_000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate := t.TempDir() // what is written before a follower came it is not told of
			id := create(t, ctx, api, c.name, map[string]any{
				"Image": image, "Cmd": []string{"sh", "-c", c.script},
				"HostConfig": map[string]any{
					"Binds":     []string{gate + ":/go"},
					"LogConfig": map[string]any{"Type": "json-file", "Config": map[string]string{"max-size": c.size, "max-file": "5"}},
				},
			})
			do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
			var wg, following sync.WaitGroup
			for range 20 {
				following.Add(1)
				wg.Go(func() {
					if err := followNumbers(ctx, e, id, following.Done, c.lines, c.all); err != nil {
						t.Error(err)
					}
				})
			}
			following.Wait()
			if err := os.WriteFile(gate+"/now", nil, 0o600); err != nil {
				t.Error(err)
			}
			wg.Wait()
			do(t, ctx, api, "DELETE", "/containers/"+id, nil, nil)
		})
	}
	api.Close()
	noLeaks(t, e)
}

// followNumbers follows a log of numbers to its end; open is called once it is open.
func followNumbers(ctx context.Context, e *harness.Engine, id string, open func(), lines int, all bool) error {
	api := e.API()
	defer api.Close()
	res, err := api.Open(ctx, "GET", "/containers/"+id+"/logs?follow=1&stdout=1&stderr=1", nil)
	open()
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r, w := net.Pipe()
	go func() {
		err := harness.Demux(res.Body, w, w)
		if err != nil {
			fmt.Fprintf(w, "error: %v\n", err)
		}
		w.Close()
	}()
	next, missed := 0, 0
	for in := bufio.NewScanner(r); in.Scan(); {
		var n int
		if _, err := fmt.Sscanf(in.Text(), "escale: %d log lines were rotated away", &n); err == nil {
			next, missed = next+n, missed+n
			continue
		}
		if in.Text() != strconv.Itoa(next) {
			return fmt.Errorf("line %q, want %d (%d missed)", in.Text(), next, missed)
		}
		next++
	}
	if next != lines || all && missed > 0 {
		return fmt.Errorf("the log ended at %d of %d lines, %d missed", next, lines, missed)
	}
	return nil
}
