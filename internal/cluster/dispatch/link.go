package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// link is a connection with a manager who leads.
type link struct {
	out  chan Up
	done chan struct{} // closed when it is over

	mu    sync.Mutex
	seq   uint64
	waits map[uint64]chan Ack
}

// ask sends something and blocks for the answer. Unavailable when there is none.
func (l *link) ask(ctx context.Context, up Up) (Ack, error) {
	answer := make(chan Ack, 1)
	l.mu.Lock()
	l.seq++
	up.Seq = l.seq
	l.waits[up.Seq] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waits, up.Seq)
		l.mu.Unlock()
	}()
	select {
	case l.out <- up:
	case <-l.done:
		return Ack{}, errCut
	case <-ctx.Done():
		return Ack{}, context.Cause(ctx)
	}
	select {
	case a := <-answer:
		return a, nil
	case <-l.done:
		return Ack{}, errCut
	case <-ctx.Done():
		return Ack{}, context.Cause(ctx)
	}
}

func (l *link) answer(list []Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range list {
		if w := l.waits[a.Seq]; w != nil {
			w <- a
			delete(l.waits, a.Seq)
		}
	}
}

// Pauses between attempts to reach a manager.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Second
)

// Run keeps up the connection with the manager who leads until ctx ends, and blocks.
func (r *Remote) Run(ctx context.Context) error {
	keeping, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	kept.Go(func() { r.keep(keeping) })
	defer kept.Wait()
	defer stop()
	r.life = keeping
	defer r.asking.Wait()
	defer r.rest()
	pause, cut := firstPause, false
	for ctx.Err() == nil {
		led, err := r.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if led { // it is missed before long
			pause, cut = firstPause, false
		}
		if !cut {
			r.log.Warn("no manager is connected: what runs goes on", "error", err)
			cut = true
		}
		if errors.Is(err, errFound) {
			continue
		}
		r.search()
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-r.finds:
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

// round asks the managers that are known, one after the other, until one of them leads;
// then it lasts as long as the connection does. led tells whether one did. The error is errFound when
// another leads by then.
func (r *Remote) round(ctx context.Context) (led bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go r.superseded(ctx, cancel)
	asked := map[string]bool{}
	err = errCut
	for {
		list, last := r.Managers(), r.last()
		i := slices.IndexFunc(list, func(m Manager) bool { return m.Addr != "" && !asked[m.Addr] && m.Addr != last })
		if i < 0 {
			i = slices.IndexFunc(list, func(m Manager) bool { return m.Addr != "" && !asked[m.Addr] })
		}
		if i < 0 {
			r.failed(err)
			return false, err
		}
		asked[list[i].Addr] = true
		led, err = r.serve(ctx, list[i].Addr)
		if errors.Is(err, errSilent) || led && errors.Is(err, errFound) {
			r.silent = list[i].Addr
		} else if r.silent == list[i].Addr {
			r.silent = ""
		}
		if ctx.Err() == nil {
			r.failed(err)
			r.search() // or one that does not answer would keep others from being found
		}
		if why := context.Cause(ctx); errors.Is(why, errFound) {
			return led, why
		}
		if led || ctx.Err() != nil {
			return led, err
		}
	}
}

// errRefused says that a manager does not lead.
var errRefused = fmt.Errorf("the manager does not lead: %w", errdefs.ErrUnavailable)

// errSilent says that nothing is heard of a manager.
var errSilent = fmt.Errorf("nothing was heard of it for %s: %w", Dead, errdefs.ErrUnavailable)

// serve is a connection with a manager, as long as it lasts; led tells whether it was one
// with the leader.
func (r *Remote) serve(ctx context.Context, addr string) (led bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.call(addr)
	defer r.call("")
	// A manager who does not answer is not there.
	silence := time.AfterFunc(Dead, func() {
		cancel(fmt.Errorf("manager %s: %w", addr, errSilent))
	})
	defer silence.Stop()
	doubt := time.AfterFunc(early, r.search)
	defer doubt.Stop()
	c, err := r.cfg.Dial(ctx, addr)
	if err != nil {
		return false, fmt.Errorf("manager %s: %w", addr, err)
	}
	closed := sync.OnceFunc(func() { _ = c.Close() })
	defer closed()
	defer context.AfterFunc(ctx, closed)()
	hello, said, err := r.hello()
	if err != nil {
		return false, err
	}
	l := &link{out: make(chan Up), done: make(chan struct{}), waits: map[uint64]chan Ack{}}
	var parts sync.WaitGroup
	defer parts.Wait()
	defer closed()
	defer close(l.done)
	defer cancel(nil)
	parts.Go(func() { cancel(r.speak(ctx, c, l, hello, said)) })
	err = r.listen(c, l, &led, func() {
		silence.Reset(Dead)
		doubt.Reset(Doubt)
	})
	r.mu.Lock()
	if r.link == l {
		r.link = nil
	}
	r.mu.Unlock()
	if why := context.Cause(ctx); why != nil && !errdefs.IsPermissionDenied(err) { // which says more than that nothing can be sent
		err = why
	}
	return led, fmt.Errorf("manager %s: %w", addr, err)
}

// hello is how a session begins.
func (r *Remote) hello() (Up, json.RawMessage, error) {
	name, status := r.cfg.Describe()
	raw, err := json.Marshal(status)
	if err != nil {
		return Up{}, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := make(map[string]uint64, len(r.prints))
	for ref, print := range r.prints {
		have[ref.String()] = print
	}
	return Up{Hello: &Hello{Protocol: Protocol, Name: name, Status: raw, Have: have}}, raw, nil
}

// listen takes what a manager sends until the connection ends, and calls heard each time.
func (r *Remote) listen(c Client, l *link, led *bool, heard func()) error {
	var list []Down
	size := 0
	for {
		d, err := c.Receive()
		if err != nil {
			return err
		}
		heard()
		if d.Cluster != nil {
			r.told(*d.Cluster)
		}
		if d.Refused {
			return errRefused
		}
		if list = append(list, d); d.More {
			if size += len(d.Objects); size > maxObjects {
				return fmt.Errorf("%d objects at once: %w", size, errdefs.ErrInvalidArgument)
			}
			continue
		}
		if err := r.take(list); err != nil {
			return err
		}
		for _, d := range list {
			if d.Cluster != nil {
				r.bar(d.Cluster.Barred)
			}
		}
		if list[len(list)-1].Synced {
			*led = true
			r.mu.Lock()
			r.link, r.err = l, nil
			r.mu.Unlock()
			r.log.Info("connected with the leader", "term", d.Term)
		}
		if *led {
			r.mu.Lock()
			r.heard = time.Now()
			r.mu.Unlock()
			r.rest()
		}
		for _, d := range list {
			l.answer(d.Acks)
		}
		list, size = nil, 0
	}
}

// maxObjects is how many a node takes at once.
const maxObjects = 1 << 20

// speak sends what there is to send, and that the node is there.
func (r *Remote) speak(ctx context.Context, c Client, l *link, hello Up, said json.RawMessage) error {
	if err := c.Send(hello); err != nil {
		return err
	}
	beat := time.NewTicker(Beat)
	defer beat.Stop()
	for {
		var up Up
		select {
		case up = <-l.out:
		case <-beat.C:
			_, status := r.cfg.Describe()
			raw, err := json.Marshal(status)
			if err != nil {
				return err
			}
			if string(raw) != string(said) { // Seq 0 is nobody's to wait for
				up.Node, said = raw, raw
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := c.Send(up); err != nil {
			return errors.Join(err, errdefs.ErrUnavailable)
		}
	}
}

// told takes over what is said of the cluster.
func (r *Remote) told(c Cluster) {
	list := slices.Clone(c.Managers)
	slices.SortStableFunc(list, func(a, b Manager) int {
		switch {
		case a.Leader == b.Leader:
			return 0
		case a.Leader:
			return -1
		}
		return 1
	})
	r.mu.Lock()
	if len(list) > 0 {
		r.managers = list
		r.soil()
	}
	r.mu.Unlock()
	if r.cfg.Told != nil {
		r.cfg.Told(c)
	}
}
