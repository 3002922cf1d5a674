package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// Client does one piece of work after the other. A connection that breaks is
// no finding, it tries again; an answer that nobody expects is one.
type Client struct {
	*Run
	n   int
	seq int
	api *harness.API
	rng *rand.Rand
}

type piece struct {
	name   string
	weight int
	do     func(c *Client) error
}

func allPieces() []piece {
	return []piece{
		{"attached", 5, (*Client).attached}, {"burst", 1, (*Client).burst}, {"counter", 4, (*Client).counter},
		{"autoremove", 2, (*Client).autoRemove}, {"image", 2, (*Client).image}, {"forced", 2, (*Client).forced},
	}
}

// Pieces does pieces of the named kinds, of all when none is named, until Quit
// or the end of the whole run.
func (c *Client) Pieces(names []string) {
	var choice []piece
	for _, p := range allPieces() {
		if len(names) == 0 || slices.Contains(names, p.name) {
			for range p.weight {
				choice = append(choice, p)
			}
		}
	}
	for {
		select {
		case <-c.quit:
			return
		case <-c.ctx.Done():
			return
		default:
		}
		p := choice[c.rng.IntN(len(choice))]
		c.Begun.Add(1)
		if err := p.do(c); err != nil {
			if c.ctx.Err() != nil {
				c.blame(&c.odd, 1, "%s: client %d was still at it when the test ended: %v", p.name, c.n, err)
				return
			}
			c.blame(&c.odd, 1, "%s: client %d: %v", p.name, c.n, err)
		}
		c.Done.Add(1)
	}
}

// name is a fresh name for a container or an image.
func (c *Client) name(what string) string {
	c.seq++
	return fmt.Sprintf("%s-%d-%d-%s", c.Prefix, c.n, c.seq, what)
}

// do asks until there is an answer. cut tells that an earlier try got none, so
// that its work may have been done.
func (c *Client) do(method, path string, body, out any) (cut bool, err error) {
	for {
		ctx, cancel := context.WithTimeout(c.ctx, 40*time.Second)
		err := c.api.Do(ctx, method, path, body, out)
		late := ctx.Err() != nil
		cancel()
		if err == nil || harness.Status(err) != 0 {
			return cut, err
		}
		if late {
			return cut, fmt.Errorf("no answer within 40 s: %w", err)
		}
		c.Cut.Add(1)
		cut = true
		c.pause(20 * time.Millisecond)
	}
}

func (c *Client) pause(d time.Duration) {
	select {
	case <-c.ctx.Done():
	case <-time.After(d):
	}
}

// upTo is a random time.
func (c *Client) upTo(d time.Duration) time.Duration {
	return time.Duration(c.rng.Int64N(int64(d) + 1))
}

// box is one container with what is known of it.
type box struct {
	*Client
	kind   string
	name   string
	id     string
	code   int            // what its process returns when it ends by itself
	acked  bool           // the last start had an answer
	status string         // what inspect said after the last wait
	starts int            // starts asked for, answered or not: the log holds at most so many runs
	seen   map[string]int // lines seen of each run while it ran, by run
}

// create makes a container. A name in use after a request without an answer is
// that request's work.
func (c *Client) create(kind, script string, code int) (*box, error) {
	b := &box{Client: c, kind: kind, name: c.name(kind), code: code, seen: map[string]int{}}
	return b, b.make(c.spec(script))
}

// spec picks a network; one in four bridged ones publishes a port.
func (c *Client) spec(script string) map[string]any {
	hc := map[string]any{"NetworkMode": "bridge"}
	switch c.rng.IntN(6) {
	case 0:
		hc["NetworkMode"] = "host"
	case 1:
		hc["NetworkMode"] = "none"
	case 2, 3:
		hc["PortBindings"] = map[string]any{"80/tcp": []map[string]string{{"HostIp": "127.0.0.1", "HostPort": ""}}}
	}
	return map[string]any{
		"Image": c.Prefix + ":base", "Cmd": []string{"sh", "-c", script},
		"AttachStdout": true, "AttachStderr": true, "HostConfig": hc, "StopTimeout": 10,
	}
}

func (b *box) make(spec map[string]any) error {
	for mine := false; ; {
		var made struct{ ID string }
		cut, err := b.do("POST", "/containers/create?name="+b.name, spec, &made)
		b.id, mine = made.ID, mine || cut
		if harness.Status(err) == 409 && mine {
			var c harness.Container
			_, err = b.do("GET", "/containers/"+b.name+"/json", nil, &c)
			if harness.Status(err) == 404 {
				continue // one with --rm that had no start goes when an engine begins
			}
			if err != nil {
				return fmt.Errorf("create said the name is in use: %w", err)
			}
			b.id = c.ID
		}
		if err == nil {
			b.Note(b.id)
		}
		return err
	}
}

// inspect reads the container.
func (b *box) inspect() (harness.Container, error) {
	var c harness.Container
	_, err := b.do("GET", "/containers/"+b.id+"/json", nil, &c)
	return c, err
}

// start starts the container once. A start without an answer is looked into:
// either the process runs or has run to its end, or nothing of it may be left
// and it is started again.
func (b *box) start() error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		b.starts++
		ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
		err := b.api.Do(ctx, "POST", "/containers/"+b.id+"/start", nil, nil)
		late := ctx.Err() != nil
		cancel()
		if b.acked = err == nil; b.acked || harness.Status(err) != 0 {
			return err
		}
		if late {
			return fmt.Errorf("start: no answer within 40 s: %w", err)
		}
		b.Cut.Add(1)
		c, err := b.inspect()
		if err != nil {
			return fmt.Errorf("after a start without an answer: %w", err)
		}
		if c.State.Running {
			return nil
		}
		l, err := b.readLog()
		if err != nil {
			return err
		}
		if last := l.last(); last != nil && last.ended && !b.knows(last.id) {
			return nil
		}
		for _, r := range l.runs {
			b.seen[r.id] = max(b.seen[r.id], r.lines)
		}
		b.RolledBack.Add(1)
	}
	return fmt.Errorf("start of %s: no answer for a minute", b.name)
}

// wait blocks until the container does not run, and checks that the answer of
// wait is what inspect says.
func (b *box) wait() (int, error) {
	var res struct{ StatusCode int }
	if _, err := b.do("POST", "/containers/"+b.id+"/wait", nil, &res); err != nil {
		return 0, err
	}
	c, err := b.inspect()
	if err != nil {
		return 0, err
	}
	if c.State.Running {
		return 0, fmt.Errorf("%s: wait ended but inspect says %s", b.name, c.State.Status)
	}
	if c.State.ExitCode != res.StatusCode {
		b.blame(&b.wrong, 1, "%s: wait says exit code %d, inspect %d", b.name, res.StatusCode, c.State.ExitCode)
	}
	b.status = c.State.Status
	b.Codes.Add(1)
	return c.State.ExitCode, nil
}

// remove removes the container; gone already is right only when an earlier try
// had no answer.
func (b *box) remove(query string) error {
	cut, err := b.do("DELETE", "/containers/"+b.id+query, nil, nil)
	if cut && (harness.Status(err) == 404 || harness.Status(err) == 409 && strings.Contains(err.Error(), "already in progress")) {
		return nil
	}
	return err
}
