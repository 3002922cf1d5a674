package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// naming measures the name server that containers on a network of their own see.
func naming(ctx context.Context, b *bench) error {
	at := map[*end]villager{}
	for _, e := range b.ends {
		v, undo, err := b.settle(ctx, e)
		defer undo()
		if err != nil {
			return fmt.Errorf("names at %s: %w", e.name, err)
		}
		at[e] = v
	}
	rate := b.line(fmt.Sprintf("names: answers by UDP, %d at once", netClients), "/s", true)
	one := b.line("names: one question after the other by UDP", "µs", false)
	for round := range max(1, min(5, b.n/3)) + 1 {
		for j, e := range b.ends {
			r, err := answers(ctx, at[e], netClients)
			if err != nil {
				return fmt.Errorf("names at %s: %w", e.name, err)
			}
			o, err := answers(ctx, at[e], 1)
			if err != nil {
				return fmt.Errorf("names at %s: %w", e.name, err)
			}
			if round > 0 { // the first does not count
				rate.Samples[j] = append(rate.Samples[j], r)
				one.Samples[j] = append(one.Samples[j], 1e6/o)
			}
		}
	}
	b.show(rate)
	b.show(one)
	return nil
}

// villager is a container on a network of its own: a process of it, and its name.
type villager struct {
	pid  int
	name string
}

// settle makes a network with a container on it.
func (b *bench) settle(ctx context.Context, e *end) (v villager, undo func(), err error) {
	name := b.run + "-names"
	var made struct{ ID string }
	undo = func() {}
	if err := e.call(ctx, "POST", "/networks/create", map[string]any{"Name": name}, &made); err != nil {
		return v, undo, err
	}
	id := ""
	undo = func() {
		later, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute) // also after an interrupt
		defer cancel()
		if id != "" {
			_ = e.call(later, "DELETE", "/containers/"+id+"?force=1", nil, nil) // the sweep would tell
		}
		for e.call(later, "DELETE", "/networks/"+made.ID, nil, nil) != nil && later.Err() == nil {
			time.Sleep(50 * time.Millisecond) // its container is on its way out
		}
	}
	s := b.spec(name, "sleep", "100000")
	if id, err = e.create(ctx, s); err != nil {
		return v, undo, err
	}
	if err := e.start(ctx, id); err != nil {
		return v, undo, err
	}
	var view struct{ State struct{ Pid int } }
	err = e.call(ctx, "GET", "/containers/"+id+"/json", nil, &view)
	return villager{pid: view.State.Pid, name: id[:12] + "."}, undo, err
}

// answers counts answers a second that as many clients at once get in the network
// namespace of a process.
func answers(ctx context.Context, v villager, clients int) (float64, error) {
	raw, err := new(dns.Msg).SetQuestion(v.name, dns.TypeA).Pack()
	if err != nil {
		return 0, err
	}
	conns := make([]net.Conn, clients)
	err = inNamespace(v.pid, func() (err error) {
		for i := range conns {
			if conns[i], err = net.Dial("udp4", "127.0.0.11:53"); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range conns {
		if c != nil {
			defer c.Close()
		}
	}
	if err != nil {
		return 0, err
	}
	var n atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, clients)
	begin := time.Now()
	for i, c := range conns {
		group.Go(func() {
			buf := make([]byte, 512)
			_ = c.SetDeadline(begin.Add(netSpan + 5*time.Second))
			for time.Since(begin) < netSpan && errs[i] == nil && ctx.Err() == nil {
				var k int
				if _, errs[i] = c.Write(raw); errs[i] == nil {
					k, errs[i] = c.Read(buf)
				}
				if errs[i] == nil && (k < 12 || !slices.Equal(buf[:2], raw[:2]) || buf[7] != 1) {
					errs[i] = errors.New("an answer without an address")
				}
				n.Add(1)
			}
		})
	}
	group.Wait()
	return float64(n.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// inNamespace runs fn in the network namespace of a process, on a thread that ends
// with it.
func inNamespace(pid int, fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never undone: the thread is of no use to others
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			defer ns.Close()
			err = os.NewSyscallError("setns", unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET))
		}
		if err == nil {
			err = fn()
		}
		errs <- err
	}()
	return <-errs
}
