package load

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"escale.dev/escale/test/internal/harness"
)

const draw = "r=$(cat /proc/sys/kernel/random/uuid); "

// attached is `run`: create, attach, start, wait, and compare output, log and
// exit code; then perhaps once more; then rm.
func (c *Client) attached() error {
	lines, code := 1+c.rng.IntN(60), c.rng.IntN(120)
	nap := []string{"", "usleep 2000; ", "usleep 20000; "}[c.rng.IntN(3)]
	script := draw + fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo "$r $i"; i=$((i+1)); %sdone; echo "$r $i end"; exit %d`, lines, nap, code)
	b, err := c.create("attached", script, code)
	if err != nil {
		return err
	}
	for range 1 + c.rng.IntN(2) {
		if err := b.runToEnd(lines); err != nil {
			return err
		}
	}
	return b.remove("")
}

// runToEnd starts a container with a client attached and waits for its end.
func (b *box) runToEnd(lines int) error {
	ctx, cancel := context.WithTimeout(b.ctx, 60*time.Second)
	defer cancel()
	type output struct {
		text []byte
		err  error
	}
	heard := make(chan output, 1)
	s, err := b.api.Hijack(ctx, "/containers/"+b.id+"/attach?stream=1&stdout=1&stderr=1", nil)
	if err == nil {
		defer s.Close()
		go func() {
			var out bytes.Buffer
			err := harness.Demux(s, &out, &out)
			heard <- output{out.Bytes(), err}
		}()
	} else if harness.Status(err) != 0 {
		return err
	}
	cuts, starts := b.Cut.Load(), b.starts
	if err := b.start(); err != nil {
		return err
	}
	code, err := b.wait()
	if err != nil {
		return err
	}
	switch {
	case code == b.code:
	case code == 137 && !b.acked: // killed between its last line and its end, as a start without an answer may be
		b.RolledBack.Add(1)
	default:
		b.blame(&b.wrong, 1, "%s (%.12s): %s with exit code %d recorded, its process returned %d (its start had an answer: %v)",
			b.name, b.id, b.status, code, b.code, b.acked)
	}
	if err := b.check(lines, true); err != nil {
		return err
	}
	// What came through the attached connection counts when no kill fell into this run.
	if s != nil && cuts == b.Cut.Load() && b.starts == starts+1 {
		select {
		case o := <-heard:
			l := parseLog(o.text)
			if o.err == nil && (l.last() == nil || !l.last().ended || l.last().lost+l.last().doubled > 0) && cuts == b.Cut.Load() {
				b.blame(&b.lost, 1, "%s (%.12s): attach gave %d bytes, not the whole output of %d lines: %.200q", b.name, b.id, len(o.text), lines, o.text)
			}
		case <-time.After(10 * time.Second):
			b.blame(&b.odd, 1, "%s (%.12s): attach goes on 10 s after the end", b.name, b.id)
		}
	}
	_, err = b.look()
	return err
}

// burst prints many lines at once and ends.
func (c *Client) burst() error {
	lines, code := 2000+c.rng.IntN(20000), c.rng.IntN(120)
	script := draw + fmt.Sprintf(`awk -v r=$r 'BEGIN { for (i = 0; i < %d; i++) print r, i }'; echo "$r %d end"; exit %d`, lines, lines, code)
	b, err := c.create("burst", script, code)
	if err != nil {
		return err
	}
	if err := b.runToEnd(lines); err != nil {
		return err
	}
	return b.remove("?force=1")
}

// counterScript counts until TERM, says how far it came, and returns 55. The
// trap only sets a flag: it may run between any two commands.
const counterScript = draw + `q=; i=0; trap q=1 TERM; while [ -z "$q" ]; do echo "$r $i"; i=$((i+1)); usleep 3000; done; echo "$r $i end"; exit 55`

// counter is `run -d` of something that goes on, with a few operations on it,
// stopped in the end: then its last line tells what must be in the log.
func (c *Client) counter() error {
	b, err := c.create("counter", counterScript, 55)
	if err != nil {
		return err
	}
	if err := b.start(); err != nil {
		return err
	}
	ops := []func(b *box) error{
		(*box).exec, (*box).exec, (*box).followOp, (*box).restart, (*box).killAndStart, (*box).rename, (*box).stopAndStart, (*box).wander, (*box).wander,
	}
	for range 1 + c.rng.IntN(4) {
		if err := b.untilCounting(); err != nil {
			return err
		}
		if err := ops[c.rng.IntN(len(ops))](b); err != nil {
			return err
		}
	}
	if err := b.untilCounting(); err != nil {
		return err
	}
	if err := b.stop(); err != nil {
		return err
	}
	return b.remove("")
}

// untilCounting waits until the current run has printed a line: from then on
// its trap is set.
func (b *box) untilCounting() error {
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := b.inspect()
		if err != nil {
			return err
		}
		if !c.State.Running {
			return fmt.Errorf("%s (%.12s): %s with %d, but nobody stopped it", b.name, b.id, c.State.Status, c.State.ExitCode)
		}
		if ok, err := b.counting(c.State.StartedAt); err != nil {
			return err
		} else if ok {
			_, err := b.look()
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s (%.12s): started, but counts no line in 20 s", b.name, b.id)
		}
		b.pause(10 * time.Millisecond)
	}
}

// stop stops the counter and checks code and log.
func (b *box) stop() error {
	if _, err := b.do("POST", "/containers/"+b.id+"/stop?t=20", nil, nil); err != nil {
		return err
	}
	code, err := b.wait()
	if err != nil {
		return err
	}
	if code != b.code {
		b.blame(&b.wrong, 1, "%s (%.12s): stopped: exit code %d recorded, its process returned %d", b.name, b.id, code, b.code)
	}
	if err := b.check(1, false); err != nil {
		return err
	}
	_, err = b.look()
	return err
}

func (b *box) stopAndStart() error {
	if err := b.stop(); err != nil {
		return err
	}
	return b.start()
}

// killAndStart kills the counter, checks the code, starts it again.
func (b *box) killAndStart() error {
	if err := b.kill(); err != nil {
		return err
	}
	return b.start()
}

// kill kills the counter and checks code and log.
func (b *box) kill() error {
	cut, err := b.do("POST", "/containers/"+b.id+"/kill", nil, nil)
	if err != nil && (!cut || harness.Status(err) != 409) {
		return err
	}
	code, err := b.wait()
	if err != nil {
		return err
	}
	if code != 137 {
		b.blame(&b.wrong, 1, "%s (%.12s): killed: exit code %d recorded", b.name, b.id, code)
	}
	if err := b.check(-1, false); err != nil {
		return err
	}
	_, err = b.look()
	return err
}

// restart restarts it; a restart without an answer is asked again.
func (b *box) restart() error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		b.starts++
		ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
		err := b.api.Do(ctx, "POST", "/containers/"+b.id+"/restart?t=2", nil, nil)
		late := ctx.Err() != nil
		cancel()
		if err == nil || harness.Status(err) != 0 {
			return err
		}
		if late {
			return fmt.Errorf("restart: no answer within 40 s: %w", err)
		}
		b.Cut.Add(1)
		b.pause(20 * time.Millisecond)
	}
	return fmt.Errorf("restart of %s: no answer for a minute", b.name)
}

func (b *box) followOp() error { return b.follow(20*time.Millisecond + b.upTo(400*time.Millisecond)) }

func (b *box) rename() error {
	name := b.name + "r"
	cut, err := b.do("POST", "/containers/"+b.id+"/rename?name="+name, nil, nil)
	if err != nil && (!cut || !slices.Contains([]int{400, 409}, harness.Status(err))) {
		return err
	}
	c, err := b.inspect()
	if err == nil && c.Name != "/"+name {
		return fmt.Errorf("%s was renamed to %s, but is %s", b.name, name, c.Name)
	}
	b.name = name
	return err
}

// exec runs a process inside and compares output and exit code, unless a kill
// fell into it.
func (b *box) exec() error {
	_, err := b.judgedExec()
	return err
}

// judgedExec tells also whether it came to comparing.
func (b *box) judgedExec() (judged bool, err error) {
	code := b.rng.IntN(120)
	cuts := b.Cut.Load()
	ask := map[string]any{"Cmd": []string{"sh", "-c", fmt.Sprintf("echo hi; exit %d", code)}, "AttachStdout": true, "AttachStderr": true}
	var made struct{ ID string }
	cut, err := b.do("POST", "/containers/"+b.id+"/exec", ask, &made)
	if cut {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	s, err := b.api.Hijack(ctx, "/exec/"+made.ID+"/start", map[string]any{"Detach": false})
	if err != nil {
		if harness.Status(err) == 404 { // a kill between the two: execs do not outlive the engine
			b.pause(20 * time.Millisecond)
			return false, nil
		}
		if harness.Status(err) != 0 {
			return false, err
		}
		b.Cut.Add(1)
		return false, nil
	}
	defer s.Close()
	var out bytes.Buffer
	if err := harness.Demux(s, &out, &out); err != nil {
		b.Cut.Add(1)
		return false, nil
	}
	var how struct {
		Running  bool
		ExitCode *int
	}
	if cut, err := b.do("GET", "/exec/"+made.ID+"/json", nil, &how); cut || harness.Status(err) == 404 || b.Cut.Load() != cuts {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if how.ExitCode == nil || *how.ExitCode != code {
		b.blame(&b.wrong, 1, "%s (%.12s): exec: exit code %v recorded, its process returned %d", b.name, b.id, deref(how.ExitCode), code)
	}
	if out.String() != "hi\n" {
		b.blame(&b.lost, 1, "%s (%.12s): exec: output %q", b.name, b.id, out.String())
	}
	b.Execs.Add(1)
	return true, nil
}

func deref(n *int) any {
	if n == nil {
		return "none"
	}
	return *n
}

// autoRemove is `run --rm`: nothing may be left of it after its end.
func (c *Client) autoRemove() error {
	b := &box{Client: c, kind: "rm", name: c.name("rm"), seen: map[string]int{}}
	spec := c.spec(fmt.Sprintf("usleep %d; exit 3", c.rng.IntN(200000)))
	spec["HostConfig"].(map[string]any)["AutoRemove"] = true
	if err := b.make(spec); err != nil {
		return err
	}
	cut, err := c.do("POST", "/containers/"+b.id+"/start", nil, nil)
	switch harness.Status(err) {
	case 404: // it ran, ended and went while the client was cut off, or never ran when an engine came up
		return nil
	case 409: // it is about to go, for one of these reasons
		err = nil
	}
	if err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); c.pause(20 * time.Millisecond) {
		got, err := b.inspect()
		if harness.Status(err) == 404 {
			return nil
		}
		if err != nil {
			return err
		}
		if cut && got.State.Status == "created" {
			// The start was cut off before it did anything.
			if _, err = c.do("POST", "/containers/"+b.id+"/start", nil, nil); err != nil && harness.Status(err) != 404 && harness.Status(err) != 409 {
				return err
			}
		}
	}
	return fmt.Errorf("%s (%.12s): --rm, but it is still there after 20 s", b.name, b.id)
}

// forced is rm -f at a random moment of a container's life.
func (c *Client) forced() error {
	b, err := c.create("forced", counterScript, 55)
	if err != nil {
		return err
	}
	if c.rng.IntN(4) > 0 {
		if err := b.start(); err != nil {
			return err
		}
	}
	c.pause(c.upTo(100 * time.Millisecond))
	if err := b.remove("?force=1&v=1"); err != nil {
		return err
	}
	if _, err := b.inspect(); harness.Status(err) != 404 {
		return fmt.Errorf("%s (%.12s): removed, but inspect answers %v", b.name, b.id, err)
	}
	return nil
}

// image imports an image of its own, tags it, uses it, removes it.
func (c *Client) image() error {
	repo := c.name("img")
	payload := make([]byte, 1000+c.rng.IntN(100000))
	for i := range payload {
		payload[i] = byte(c.rng.Uint32())
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "data", Mode: 0o644, Size: int64(len(payload))}); err != nil {
		return err
	}
	if _, err := w.Write(payload); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	for {
		ctx, cancel := context.WithTimeout(c.ctx, 40*time.Second)
		err := c.api.Import(ctx, repo, "1", bytes.NewReader(buf.Bytes()))
		cancel()
		if err == nil {
			break
		}
		if harness.Status(err) != 0 || ctx.Err() == context.DeadlineExceeded {
			return err
		}
		c.Cut.Add(1)
		c.pause(20 * time.Millisecond)
	}
	if _, err := c.do("POST", "/images/"+repo+":1/tag?repo="+repo+"&tag=2", nil, nil); err != nil {
		return err
	}
	b := &box{Client: c, kind: "img", name: c.name("user"), seen: map[string]int{}}
	if err := b.make(map[string]any{"Image": repo + ":2", "Cmd": []string{"/none"}}); err != nil {
		return err
	}
	if _, err := c.do("DELETE", "/images/"+repo+":1", nil, nil); err != nil && harness.Status(err) != 404 {
		return err
	}
	if _, err := c.do("DELETE", "/images/"+repo+":2", nil, nil); harness.Status(err) != 409 {
		return fmt.Errorf("removal of image %s:2, which %s uses: %v, want 409", repo, b.name, err)
	}
	if err := b.remove(""); err != nil {
		return err
	}
	cut, err := c.do("DELETE", "/images/"+repo+":2", nil, nil)
	if err != nil && !(cut && harness.Status(err) == 404) {
		return err
	}
	if _, err := c.do("GET", "/images/"+repo+":2/json", nil, nil); harness.Status(err) != 404 {
		return fmt.Errorf("image %s:2 removed, but inspect answers %v", repo, err)
	}
	return nil
}
