// Command bench measures two Docker endpoints side by side: the same work on
// the same machine through the same client, turn about, so that what disturbs
// one disturbs the other. It prints minimum, median and the ratio of medians,
// and writes all samples as JSON.
//
//	go run ./bench -a unix:///var/run/docker.sock -b unix:///run/escale/escale.sock
//
// A is the endpoint compared with, B the one in question: a ratio of 3 says
// that B is three times as fast (or takes a third of the memory). Both ends get
// a small image of the machine's static busybox and lose it at the end; what builds leave
// in a cache stays. Needs root for memory figures; the stock docker client for what
// goes through it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	a, b      string
	image     string
	only      string
	n         int
	json      string
	cli       string
	tar       string
	size      int
	storm     int
	list      int
	lines     int
	scale     string
	scaleA    string
	scaleEnds string
	registry  string
	restart   string
	restartN  int
	pids      [2]string
	compose   [2]string
	timeout   time.Duration
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.a, "a", "unix:///var/run/docker.sock", "`endpoint` compared with")
	f.StringVar(&o.b, "b", "unix:///run/escale/escale.sock", "`endpoint` in question")
	f.StringVar(&o.image, "image", "", "`image` that both ends have, with a shell and true, seq, sleep (default: busybox, imported)")
	f.StringVar(&o.only, "only", "", "comma-separated `cases` to run: "+strings.Join(caseNames(), ","))
	f.IntVar(&o.n, "n", 15, "samples of each short measure at each end")
	f.StringVar(&o.json, "json", "", "write all samples to `file`")
	f.StringVar(&o.cli, "cli", "docker", "client `program` for what goes through a client; empty: leave that out")
	f.StringVar(&o.tar, "tar", "", "root filesystem `file` for import, load, save (default: files of this machine)")
	f.IntVar(&o.size, "size", 200, "`megabytes` of that filesystem when -tar is not given")
	f.IntVar(&o.storm, "storm", 60, "containers of the start storm, 8 at a time")
	f.IntVar(&o.list, "list", 100, "containers that are listed")
	f.IntVar(&o.lines, "lines", 1_000_000, "log lines")
	f.StringVar(&o.scale, "scale", "10,100,1000", "`numbers` of running containers among which one more is measured")
	f.StringVar(&o.scaleA, "scale-a", "", "the same at A, when it is not to carry as many")
	f.StringVar(&o.scaleEnds, "scale-ends", "b", "`ends` that have to carry so many: a, b or ab")
	f.StringVar(&o.registry, "registry", "bin/escaled", "`program` of Escale's registry; Debian's docker-registry is taken where it is installed")
	f.StringVar(&o.restart, "restart", "", "which engines may be killed and started again: `a`, b or ab; no supervisor may stand over them")
	f.IntVar(&o.restartN, "restart-containers", 100, "running containers at a restart")
	f.StringVar(&o.compose[0], "compose-a", "", "`command` of compose at A, as docker-compose; without both, that is left out")
	f.StringVar(&o.compose[1], "compose-b", "", "the same at B, as bin/escale compose")
	f.StringVar(&o.pids[0], "pids-a", "", "processes of engine A, comma-separated (default: the socket's owner and its children)")
	f.StringVar(&o.pids[1], "pids-b", "", "the same for B")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if o.n < 1 || o.storm < 1 || o.list < 1 || o.lines < 1 || o.size < 1 || o.restartN < 1 {
		return o, errors.New("counts must be positive")
	}
	for j := range 2 {
		if _, err := o.sizes(j); err != nil {
			return o, err
		}
	}
	if strings.Trim(o.scaleEnds, "ab") != "" {
		return o, fmt.Errorf("-scale-ends %q: a, b or ab", o.scaleEnds)
	}
	if strings.Trim(o.restart, "ab") != "" {
		return o, fmt.Errorf("-restart %q: a, b or ab", o.restart)
	}
	for _, name := range split(o.only) {
		if !slices.Contains(caseNames(), name) {
			return o, fmt.Errorf("-only: no case %q; there are %s", name, strings.Join(caseNames(), ", "))
		}
	}
	return o, nil
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	b := &bench{options: o, run: fmt.Sprintf("bench-%d", os.Getpid())}
	if o.cli != "" {
		if b.cliPath, err = exec.LookPath(o.cli); err != nil {
			fmt.Fprintf(os.Stderr, "bench: no client %q: measures through the client are left out\n", o.cli)
		}
	}
	for i, host := range []string{o.a, o.b} {
		if b.ends[i], err = connect(ctx, host, "AB"[i:i+1]); err != nil {
			return err
		}
		b.ends[i].pids = o.pids[i]
	}
	// The clean-up must run after an interrupt too: detached from ctx.
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, b.cleanup(undo))
	}()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	var failed []string
	for _, c := range cases() {
		if only := split(o.only); len(only) > 0 && !slices.Contains(only, c.name) {
			continue
		}
		if err := c.run(ctx, b); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", c.name, err)
			failed = append(failed, c.name)
		}
		if err := b.sweep(ctx); err != nil {
			return err
		}
	}
	fmt.Print(b.report())
	if o.json != "" {
		if err := b.writeJSON(o.json); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("cases without a result: %s", strings.Join(failed, ", "))
	}
	return nil
}
