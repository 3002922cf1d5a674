package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// attached are the pieces of work whose cost is to be the same among few containers of a
// network and among many, by the beginning of the names of their measures.
var attached = []string{"connect", "disconnect", "start with a port, until it answers", "the port taken back"}

// attaching measures how the cost of connecting a running container to a network, and of
// publishing a port of one, grows with the containers that are on the network with
// ports of their own. Sizes and ends are those of -scale, -scale-a and -scale-ends.
func attaching(ctx context.Context, b *bench) error {
	for j, e := range b.ends {
		if !strings.Contains(b.scaleEnds, strings.ToLower(e.name)) {
			continue
		}
		sizes, err := b.sizes(j)
		if err != nil {
			return err
		}
		if err := b.attachingAt(ctx, j, e, sizes); err != nil {
			return fmt.Errorf("attaching at %s: %w", e.name, err)
		}
	}
	return nil
}

func (b *bench) attachingAt(ctx context.Context, j int, e *end, sizes []int) (err error) {
	network := "attach-" + b.run[strings.LastIndexAny(b.run, "=-")+1:]
	if err := e.call(ctx, "POST", "/networks/create", map[string]any{"Name": network, "IPAM": map[string]any{"Config": []any{map[string]string{"Subnet": "10.197.0.0/16"}}}}, nil); err != nil {
		return err
	}
	defer func() {
		if swept := b.sweep(ctx); err == nil {
			err = swept
		}
		if gone := e.call(context.WithoutCancel(ctx), "DELETE", "/networks/"+network, nil, nil); err == nil {
			err = gone
		}
	}()
	mover, err := e.create(ctx, b.spec("none", "sleep", "36000"))
	if err == nil {
		err = e.start(ctx, mover)
	}
	if err == nil { // it is on no network
		err = e.call(ctx, "POST", "/networks/none/disconnect", map[string]any{"Container": mover}, nil)
	}
	if err != nil {
		return err
	}
	there := 0
	for _, n := range sizes {
		err := parallel(8, n-there, func(int) error {
			id, err := e.create(ctx, b.publishing(network))
			if err == nil {
				err = e.start(ctx, id)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%d containers: %w", n, err)
		}
		there = n
		if err := b.attachAmong(ctx, j, n, network, mover); err != nil {
			return err
		}
	}
	b.compared(j, sizes, attached, "%s, among %d")
	return nil
}

// publishing is a container with a port that answers.
func (b *bench) publishing(network string) spec {
	s := b.spec(network, "/bin/busybox", "httpd", "-f", "-h", "/etc")
	s.ExposedPorts = map[string]struct{}{"80/tcp": {}}
	s.HostConfig.PortBindings = map[string][]portBinding{"80/tcp": {{HostIP: "127.0.0.1"}}}
	return s
}

// behind is how long the link of a container that was removed may take to be gone.
const behind = 300 * time.Millisecond

// attachAmong measures the pieces at one end, among n containers.
func (b *bench) attachAmong(ctx context.Context, j, n int, network, mover string) error {
	e := b.ends[j]
	lines := map[string]*measure{}
	for _, what := range attached {
		lines[what] = b.line(fmt.Sprintf("%s, among %d", what, n), "ms", false)
	}
	for i := -1; i < b.n; i++ {
		timed := timer(lines, j, i >= 0)
		// Engines give links back behind their answer, and nobody can make one meanwhile.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(behind):
		}
		for _, way := range []string{"connect", "disconnect"} {
			if err := timed(way, func() error {
				return e.call(ctx, "POST", "/networks/"+network+"/"+way, map[string]any{"Container": mover}, nil)
			}); err != nil {
				return err
			}
		}
		id, err := e.create(ctx, b.publishing(network))
		if err != nil {
			return err
		}
		if err := timed(attached[2], func() error {
			if err := e.start(ctx, id); err != nil {
				return err
			}
			return e.answers(ctx, id)
		}); err != nil {
			return err
		}
		if err := timed(attached[3], func() error { return e.call(ctx, "POST", "/containers/"+id+"/kill", nil, nil) }); err != nil {
			return err
		}
		if err := e.call(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil); err != nil {
			return err
		}
	}
	for _, what := range attached {
		b.show(lines[what])
	}
	return nil
}

// answers waits until the port of a container takes a connection.
func (e *end) answers(ctx context.Context, id string) error {
	var c struct {
		NetworkSettings struct {
			Ports map[string][]struct{ HostPort string }
		}
	}
	if err := e.call(ctx, "GET", "/containers/"+id+"/json", nil, &c); err != nil {
		return err
	}
	list := c.NetworkSettings.Ports["80/tcp"]
	if len(list) == 0 {
		return fmt.Errorf("container %.12s has no published port", id)
	}
	port, err := strconv.Atoi(list[0].HostPort)
	if err != nil {
		return err
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return err
		}
	}
}
