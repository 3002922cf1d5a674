package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// benchCase is a group of measures under one name.
type benchCase struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

// cases are what can be measured, in the order of the table.
func cases() []benchCase {
	return []benchCase{
		{"memory", idleMemory}, {"run", runs}, {"exec", execs}, {"storm", storm}, {"list", lists},
		{"logs", logs}, {"monitor", monitorMemory}, {"image", images}, {"build", builds}, {"compose", composing}, {"registry", registries}, {"net", published}, {"netscale", attaching}, {"names", naming}, {"restart", restarts}, {"scale", scale},
	}
}

// caseNames lists the names that -only takes.
func caseNames() []string {
	var names []string
	for _, c := range cases() {
		names = append(names, c.name)
	}
	return names
}

// runs measures a whole `run --rm IMAGE true` by network.
func runs(ctx context.Context, b *bench) error {
	for _, network := range []string{"bridge", "none", "host"} {
		if b.cliPath != "" {
			err := b.turns(ctx, "run --rm, "+network+", client", b.n, func(ctx context.Context, e *end) error {
				return e.cli(ctx, b.cliPath, "run", "--rm", "--net", network, "--label", b.run, b.image, "true")
			})
			if err != nil {
				return err
			}
		}
		err := b.turns(ctx, "run --rm, "+network+", API", b.n, func(ctx context.Context, e *end) error {
			s := b.spec(network, "true")
			s.HostConfig.AutoRemove = true
			return e.runRemoved(ctx, s)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// runRemoved does what a client's `run --rm` asks of the engine: create, wait
// for the removal, start.
func (e *end) runRemoved(ctx context.Context, s spec) error {
	id, err := e.create(ctx, s)
	if err != nil {
		return err
	}
	// The engine sends the headers at once and the body when it is over.
	res, err := e.open(ctx, "POST", "/containers/"+id+"/wait?condition=removed", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := e.start(ctx, id); err != nil {
		return err
	}
	var code struct{ StatusCode int }
	if err := json.NewDecoder(res.Body).Decode(&code); err != nil {
		return err
	}
	if code.StatusCode != 0 {
		return fmt.Errorf("exit code %d", code.StatusCode)
	}
	return nil
}

// execs measures `exec C true` in a container without network.
func execs(ctx context.Context, b *bench) error {
	ids := map[*end]string{}
	for _, e := range b.ends {
		id, err := e.create(ctx, b.spec("none", "sleep", "3600"))
		if err != nil {
			return err
		}
		if err := e.start(ctx, id); err != nil {
			return err
		}
		ids[e] = id
	}
	if b.cliPath != "" {
		if err := b.turns(ctx, "exec, client", b.n, func(ctx context.Context, e *end) error {
			return e.cli(ctx, b.cliPath, "exec", ids[e], "true")
		}); err != nil {
			return err
		}
	}
	return b.turns(ctx, "exec, API", b.n, func(ctx context.Context, e *end) error { return e.exec(ctx, ids[e]) })
}

// exec runs true in a container, attached, and checks how it ended.
func (e *end) exec(ctx context.Context, id string) error {
	var made struct{ ID string }
	ask := map[string]any{"Cmd": []string{"true"}, "AttachStdout": true, "AttachStderr": true}
	if err := e.call(ctx, "POST", "/containers/"+id+"/exec", ask, &made); err != nil {
		return err
	}
	if err := e.execStart(ctx, made.ID); err != nil {
		return err
	}
	var how struct{ ExitCode *int }
	if err := e.call(ctx, "GET", "/exec/"+made.ID+"/json", nil, &how); err != nil {
		return err
	}
	if how.ExitCode == nil || *how.ExitCode != 0 {
		return fmt.Errorf("exec of true did not end with 0")
	}
	return nil
}

// execStart upgrades a connection as clients do and reads it to its end.
func (e *end) execStart(ctx context.Context, id string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, e.network, e.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	body := `{"Detach":false,"Tty":false}`
	req, err := http.NewRequestWithContext(ctx, "POST", "http://docker/exec/"+id+"/start", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if err := req.Write(c); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols && res.StatusCode != http.StatusOK {
		return fmt.Errorf("exec start: %s", res.Status)
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// settling is how long a storm waits for the kernel to be done with what the removals
// before it left, which are mostly the other end's.
const settling = time.Second

// storm starts many containers, eight at a time, and removes them while they run.
func storm(ctx context.Context, b *bench) error {
	rounds := max(1, min(5, b.n/3))
	type way struct {
		name  string
		start func(e *end) error
	}
	ways := []way{{"API", func(e *end) error {
		id, err := e.create(ctx, b.spec("bridge", "sleep", "3600"))
		if err != nil {
			return err
		}
		return e.start(ctx, id)
	}}}
	if b.cliPath != "" {
		ways = append(ways, way{"client", func(e *end) error {
			return e.cli(ctx, b.cliPath, "run", "-d", "--label", b.run, b.image, "sleep", "3600")
		}})
	}
	for _, w := range ways {
		rate := b.line(fmt.Sprintf("start storm, %d containers, 8 at a time, %s", b.storm, w.name), "/s", true)
		rm := b.line("rm -f of a running container, "+w.name, "ms", false)
		for range rounds {
			for j, e := range b.ends {
				time.Sleep(settling)
				begin := time.Now()
				if err := parallel(8, b.storm, func(int) error { return w.start(e) }); err != nil {
					return fmt.Errorf("storm at %s: %w", e.name, err)
				}
				rate.Samples[j] = append(rate.Samples[j], float64(b.storm)/time.Since(begin).Seconds())
				ids, err := e.list(ctx, b.run)
				if err != nil {
					return err
				}
				for i, id := range ids {
					begin := time.Now()
					if w.name == "client" && i < b.n {
						err = e.cli(ctx, b.cliPath, "rm", "-f", id)
					} else {
						err = e.remove(ctx, id)
					}
					if err != nil {
						return err
					}
					if w.name == "API" || i < b.n {
						rm.Samples[j] = append(rm.Samples[j], ms(time.Since(begin)))
					}
				}
			}
		}
		b.show(rate)
		b.show(rm)
	}
	return nil
}

// lists measures the list of many containers, a few of them running.
func lists(ctx context.Context, b *bench) error {
	for _, e := range b.ends {
		err := parallel(8, b.list, func(i int) error {
			id, err := e.create(ctx, b.spec("bridge", "sleep", "3600"))
			if err != nil || i%10 != 0 {
				return err
			}
			return e.start(ctx, id)
		})
		if err != nil {
			return fmt.Errorf("%d containers at %s: %w", b.list, e.name, err)
		}
	}
	err := b.turns(ctx, fmt.Sprintf("list of %d containers, API", b.list), 4*b.n, func(ctx context.Context, e *end) error {
		return e.call(ctx, "GET", "/containers/json?all=1", nil, nil)
	})
	if err != nil || b.cliPath == "" {
		return err
	}
	return b.turns(ctx, fmt.Sprintf("ps -a of %d containers, client", b.list), b.n, func(ctx context.Context, e *end) error {
		return e.cli(ctx, b.cliPath, "ps", "-aq")
	})
}

// logs measures lines written by a container and read back whole.
func logs(ctx context.Context, b *bench) error {
	written := b.line("logs written", "k lines/s", true)
	read := b.line("logs read back", "k lines/s", true)
	both := b.line("logs written and read back", "k lines/s", true)
	for range 3 {
		for j, e := range b.ends {
			id, err := e.create(ctx, b.spec("none", "seq", strconv.Itoa(b.lines)))
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := e.start(ctx, id); err != nil {
				return err
			}
			if code, err := e.wait(ctx, id); err != nil || code != 0 {
				return errors.Join(err, fmt.Errorf("seq at %s ended with %d", e.name, code))
			}
			w := time.Since(begin)
			n, last, err := e.countLines(ctx, id)
			if err != nil {
				return err
			}
			// An engine that bounds its logs by default keeps the newest of them.
			if last != strconv.Itoa(b.lines) {
				return fmt.Errorf("log at %s: %d lines, the last is %q", e.name, n, last)
			}
			r := time.Since(begin) - w
			written.Samples[j] = append(written.Samples[j], float64(b.lines)/w.Seconds()/1000)
			read.Samples[j] = append(read.Samples[j], float64(n)/r.Seconds()/1000)
			both.Samples[j] = append(both.Samples[j], 1/(w.Seconds()/float64(b.lines)+r.Seconds()/float64(n))/1000)
			if err := e.remove(ctx, id); err != nil {
				return err
			}
		}
	}
	for _, m := range []*measure{written, read, both} {
		b.show(m)
	}
	return nil
}

// countLines reads a container's whole log and returns how many lines it had
// and the last of them.
func (e *end) countLines(ctx context.Context, id string) (int, string, error) {
	res, err := e.open(ctx, "GET", "/containers/"+id+"/logs?stdout=1&tail=all", nil)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	r := bufio.NewReaderSize(res.Body, 1<<20)
	n := 0
	var tail []byte
	var h [8]byte
	for {
		if _, err := io.ReadFull(r, h[:]); errors.Is(err, io.EOF) {
			return n, strings.TrimSpace(string(tail)), nil
		} else if err != nil {
			return n, "", err
		}
		size := int(h[4])<<24 | int(h[5])<<16 | int(h[6])<<8 | int(h[7])
		line, err := r.Peek(size)
		if err != nil {
			return n, "", err
		}
		n++
		tail = append(tail[:0], line...)
		if _, err := r.Discard(size); err != nil {
			return n, "", err
		}
	}
}
