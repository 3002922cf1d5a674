package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// restarts measures how long an engine that was killed with containers running
// takes from its start until it answers, and that none of them was interrupted.
func restarts(ctx context.Context, b *bench) error {
	if b.restart == "" {
		fmt.Fprintln(os.Stderr, "bench: restart is left out: -restart a, b or ab says which engines may be killed")
		return nil
	}
	m := b.line(fmt.Sprintf("restart with %d running containers", b.restartN), "ms", false)
	for j, e := range b.ends {
		if !strings.Contains(b.restart, strings.ToLower(e.name)) {
			continue
		}
		err := parallel(8, b.restartN, func(int) error {
			id, err := e.create(ctx, b.spec("bridge", "sleep", "3600"))
			if err != nil {
				return err
			}
			return e.start(ctx, id)
		})
		if err != nil {
			return err
		}
		before, err := e.running(ctx, b.run)
		if err != nil {
			return err
		}
		for range 5 {
			d, err := e.restart(ctx)
			if err != nil {
				return fmt.Errorf("restart of %s: %w", e.name, err)
			}
			m.Samples[j] = append(m.Samples[j], ms(d))
		}
		after, err := e.running(ctx, b.run)
		if err != nil {
			return err
		}
		for id, pid := range before {
			if after[id] != pid {
				return fmt.Errorf("container %.12s at %s: process %d before, %d after", id, e.name, pid, after[id])
			}
		}
	}
	b.show(m)
	return nil
}

// running maps this run's running containers to their processes.
func (e *end) running(ctx context.Context, label string) (map[string]int, error) {
	ids, err := e.list(ctx, label)
	if err != nil {
		return nil, err
	}
	pids := map[string]int{}
	for _, id := range ids {
		var c struct{ State struct{ Pid int } }
		if err := e.call(ctx, "GET", "/containers/"+id+"/json", nil, &c); err != nil {
			return nil, err
		}
		pids[id] = c.State.Pid
	}
	return pids, nil
}

// restart kills the engine with SIGKILL, starts the same program with the same
// arguments, environment and output again, and returns the time from its start
// to its first answer.
func (e *end) restart(ctx context.Context) (time.Duration, error) {
	pid, err := e.owner(ctx)
	if err != nil {
		return 0, err
	}
	read := func(name string) ([]string, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), err
	}
	args, err := read("cmdline")
	if err != nil {
		return 0, err
	}
	env, err := read("environ")
	if err != nil {
		return 0, err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return 0, err
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return 0, err
	}
	cmd := &exec.Cmd{Path: exe, Args: args, Env: env, Dir: dir, SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if out, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", pid), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
	}
	e.http.CloseIdleConnections()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, err
	}
	for syscall.Kill(pid, 0) == nil && !isZombie(pid) {
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it when a later restart kills it
	for {
		if err := e.call(ctx, "GET", "/_ping", nil, nil); err == nil {
			return time.Since(begin), nil
		}
		select {
		case err := <-ended:
			return 0, errors.Join(errors.New("the engine ended at once"), err)
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}
