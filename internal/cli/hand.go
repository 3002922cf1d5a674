package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/tty"
)

// heavy is work that escaled does for the command line, because it links what this
// program must not: its arguments, and what it reads on descriptor handed.FD.
type heavy struct {
	who     string // the verb, for words
	args    []string
	payload any
	// graceful: signals are the work's own affair, and so is how it ends.
	graceful bool
}

// hand starts escaled with the work and waits for it. Its streams are ours, and
// so is its exit code.
func (a *app) hand(ctx context.Context, h heavy) error {
	path, err := findEngine()
	if err != nil {
		return fmt.Errorf("%w (%s %s needs it, also for an engine elsewhere)", err, a.name, h.who)
	}
	data, err := json.Marshal(h.payload)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	cmd := exec.Command(path, h.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.ExtraFiles = []*os.File{r} // handed.FD
	err = cmd.Start()
	_ = r.Close()
	if err != nil {
		return err
	}
	go func() {
		_, _ = w.Write(data) // whoever does not read it says why
		_ = w.Close()
	}()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err = a.await(ctx, cmd.Process, done, h.graceful)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil && !h.graceful:
		return context.Cause(ctx)
	case errors.As(err, &exit):
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return exitWith(128 + int(s.Signal()))
		}
		return exitWith(max(exit.ExitCode(), 1))
	}
	return err
}

// patience is how long work that is told to end may take.
const patience = 10 * time.Second

// await waits for the program, and passes signals on to it: to work that is not
// graceful one TERM, and KILL when it does not end.
func (a *app) await(ctx context.Context, p *os.Process, done <-chan error, graceful bool) error {
	if !graceful {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			_ = p.Signal(syscall.SIGTERM)
		}
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			_ = p.Kill()
			return <-done
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			if n, ok := s.(syscall.Signal); ok && !a.fromKeyboard(n) {
				_ = p.Signal(n)
			}
		}
	}
}

// fromKeyboard tells whether a signal comes from the keys of our terminal, in all
// likelihood: then the program that we started has it, too.
func (a *app) fromKeyboard(s syscall.Signal) bool {
	if s != syscall.SIGINT && s != syscall.SIGQUIT {
		return false
	}
	f, ok := a.in.(*os.File)
	if !ok || !tty.IsTerminal(f) {
		return false
	}
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

// compose has escaled do a command of compose. With byName the app is named by
// -p, and no file is read.
func (a *app) compose(ctx context.Context, byName bool, args ...string) error {
	return a.handEngine(ctx, handed.Compose, args, func(e handed.Engine) any {
		e.ByName = byName
		return e
	})
}

// handEngine has escaled do work of which the word tells what, with a payload that
// names the engine.
func (a *app) handEngine(ctx context.Context, word string, args []string, payload func(handed.Engine) any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	host, done, err := local(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	o := a.endpoint.Options
	e := handed.Engine{
		Name: a.name, Host: host, APIVersion: o.APIVersion, UserAgent: "Escale-Client/" + Version + " (linux)", Headers: o.Headers,
		ConfigDir: a.flags.ConfigDir, Debug: a.debug,
	}
	for name, value := range a.config.ProxyEnv(c.Host()) {
		e.Proxies = append(e.Proxies, name+"="+value)
	}
	slices.Sort(e.Proxies)
	all := append([]string{word, handed.Flag}, args...)
	return a.hand(context.WithoutCancel(ctx), heavy{who: word, args: all, payload: payload(e), graceful: true})
}

// local gives the engine's address as a socket of this machine: its own, or one
// whose connections are passed on to it, with all that this side knows of keys.
func local(ctx context.Context, c *client.Client) (host string, done func(), err error) {
	if len(c.Host()) > 7 && c.Host()[:7] == "unix://" {
		return c.Host(), func() {}, nil
	}
	dir, err := os.MkdirTemp("", "escale-engine-")
	if err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, "engine.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the work ends first, then its way to the engine
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return // closed
			}
			go pass(ctx, near, c.Dialer())
		}
	}()
	return "unix://" + path, func() {
		cancel()
		_ = l.Close()
		_ = os.RemoveAll(dir)
	}, nil
}

// pass joins a connection with one to the engine, until one of them ends.
func pass(ctx context.Context, near net.Conn, dial func(context.Context) (net.Conn, error)) {
	defer near.Close()
	far, err := dial(ctx)
	if err != nil {
		return // the other side sees its connection end
	}
	defer far.Close()
	ended := make(chan struct{}, 2)
	for _, way := range []struct{ to, from net.Conn }{{near, far}, {far, near}} {
		go func() {
			_, _ = io.Copy(way.to, way.from)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
}
