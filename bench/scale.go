package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// scale measures how the cost of one more container grows with those that are
// there: running ones on the bridge first, then as many that have ended. Only the
// ends of -scale-ends are measured: a thousand containers of an engine with a
// monitor of 13 MB each do not fit everywhere.
func scale(ctx context.Context, b *bench) error {
	for j, e := range b.ends {
		if !strings.Contains(b.scaleEnds, strings.ToLower(e.name)) {
			continue
		}
		sizes, err := b.sizes(j)
		if err != nil {
			return err
		}
		var ids []string
		for _, n := range sizes {
			more, err := e.startMany(ctx, b, n-len(ids))
			if err != nil {
				return fmt.Errorf("%d running containers at %s: %w", n, e.name, err)
			}
			ids = append(ids, more...)
			if err := b.among(ctx, j, fmt.Sprintf("among %d running", n), ids[0]); err != nil {
				return fmt.Errorf("among %d running at %s: %w", n, e.name, err)
			}
		}
		err = parallel(8, len(ids)-1, func(i int) error {
			return e.call(ctx, "POST", "/containers/"+ids[i+1]+"/kill", nil, nil)
		})
		if err != nil {
			return err
		}
		if err := b.among(ctx, j, fmt.Sprintf("among %d ended", len(ids)), ids[0]); err != nil {
			return err
		}
		if err := b.sweep(ctx); err != nil {
			return err
		}
		b.compared(j, sizes, scaled, "%s, among %d running")
	}
	return nil
}

// sizes are those of -scale at one end, in rising order.
func (o options) sizes(j int) ([]int, error) {
	flag, numbers := "-scale", o.scale
	if j == 0 && o.scaleA != "" {
		flag, numbers = "-scale-a", o.scaleA
	}
	var out []int
	for _, s := range split(numbers) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s %q: numbers of containers", flag, numbers)
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s %q: numbers of containers", flag, numbers)
	}
	slices.Sort(out)
	return out, nil
}

// startMany starts n containers on the bridge that sleep.
func (e *end) startMany(ctx context.Context, b *bench, n int) ([]string, error) {
	ids := make([]string, max(0, n))
	err := parallel(8, len(ids), func(i int) (err error) {
		if ids[i], err = e.create(ctx, b.spec("bridge", "sleep", "36000")); err != nil {
			return err
		}
		return e.start(ctx, ids[i])
	})
	return ids, err
}

// scaled are the pieces of work whose growth is asked for, by the beginning of
// the names of their measures.
var scaled = []string{
	"create", "start, bridge", "start, bridge and a port", "start, no network", "exec", "list, running ones", "list, all",
	"inspect", "rename until its event", "rm -f",
}

// among measures each piece at one end. id is a container that runs. A round goes
// through all pieces, so that what disturbs one disturbs its neighbours.
func (b *bench) among(ctx context.Context, j int, where, id string) error {
	e := b.ends[j]
	lines := map[string]*measure{}
	for _, what := range scaled {
		lines[what] = b.line(what+", "+where, "ms", false)
	}
	for i := -1; i < b.n; i++ {
		timed := timer(lines, j, i >= 0)
		if err := b.oneMore(ctx, e, timed); err != nil {
			return err
		}
		for _, ask := range []struct {
			what string
			do   func() error
		}{
			{"exec", func() error { return e.exec(ctx, id) }},
			{"list, running ones", func() error { return e.call(ctx, "GET", "/containers/json", nil, nil) }},
			{"list, all", func() error { return e.call(ctx, "GET", "/containers/json?all=1", nil, nil) }},
			{"inspect", func() error { return e.call(ctx, "GET", "/containers/"+id+"/json", nil, nil) }},
		} {
			if err := timed(ask.what, ask.do); err != nil {
				return err
			}
		}
		if err := e.renamed(ctx, id, fmt.Sprintf("%s-%s-%d", b.run, strings.ReplaceAll(where, " ", "-"), i+1), timed); err != nil {
			return err
		}
	}
	for _, what := range scaled {
		b.show(lines[what])
	}
	return nil
}

// oneMore measures the life of one container more of each kind.
func (b *bench) oneMore(ctx context.Context, e *end, timed func(string, func() error) error) error {
	for _, kind := range []struct {
		what string
		spec func() spec
	}{
		{"start, no network", func() spec { return b.spec("none", "sleep", "36000") }},
		{"start, bridge and a port", func() spec {
			s := b.spec("bridge", "sleep", "36000")
			s.HostConfig.PortBindings = map[string][]portBinding{"80/tcp": {{HostIP: "127.0.0.1"}}}
			return s
		}},
		{"start, bridge", func() spec { return b.spec("bridge", "sleep", "36000") }},
	} {
		var id string
		create := func() (err error) {
			id, err = e.create(ctx, kind.spec())
			return err
		}
		remove := func() error { return e.remove(ctx, id) }
		if kind.what != "start, bridge" {
			// Create and remove count once a round.
			if err := create(); err != nil {
				return err
			}
		} else if err := timed("create", create); err != nil {
			return err
		}
		if err := timed(kind.what, func() error { return e.start(ctx, id) }); err != nil {
			return err
		}
		if kind.what != "start, bridge" {
			if err := remove(); err != nil {
				return err
			}
		} else if err := timed("rm -f", remove); err != nil {
			return err
		}
	}
	return nil
}

// renamed measures from a rename to the message about it.
func (e *end) renamed(ctx context.Context, id, name string, timed func(string, func() error) error) error {
	f, err := json.Marshal(map[string][]string{"event": {"rename"}, "container": {id}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := e.open(ctx, "GET", "/events?filters="+url.QueryEscape(string(f)), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r := bufio.NewReader(res.Body)
	return timed("rename until its event", func() error {
		if err := e.call(ctx, "POST", "/containers/"+id+"/rename?name="+name, nil, nil); err != nil {
			return err
		}
		_, err := r.ReadString('\n')
		return err
	})
}

// compared adds how many times as much each piece cost among the most as among the
// fewest: by the medians, and by the best.
func (b *bench) compared(j int, sizes []int, pieces []string, name string) {
	few, many := sizes[0], sizes[len(sizes)-1]
	if few == many {
		return
	}
	fmt.Fprintf(os.Stderr, "among %d against among %d at %s:\n", many, few, b.ends[j].name)
	for _, what := range pieces {
		at := func(n int) *measure { return b.line(fmt.Sprintf(name, what, n), "ms", false) }
		m := b.line(fmt.Sprintf("%s: among %d / among %d", what, many, few), "×", false)
		if base := median(at(few).Samples[j]); base > 0 {
			m.Samples[j] = []float64{median(at(many).Samples[j]) / base}
		}
		best := 0.0
		if base := at(few).best(j); base > 0 {
			best = at(many).best(j) / base
		}
		fmt.Fprintf(os.Stderr, "  %-28s median × %s, best × %s\n", what, number(median(m.Samples[j])), number(best))
	}
}
