// Package native is an OCI runtime (github.com/opencontainers/runtime-spec,
// runtime.md) by runc's command line. This half stays outside of the container: it
// reads the specification, opens what it names, makes cgroups and namespaces, and has
// the half inside (package inside) do the rest. An engine has this half in itself, as a
// Maker, for most of its containers.
//
// It needs Linux 5.12: mounts are made by descriptors (mount_setattr(2)).
package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/inside"
	"escale.dev/escale/internal/runtime/native/record"
)

// insideArg, alone, has the program be the half inside.
const insideArg = "inside"

// Version is what --version says; the build sets it.
var Version = "0.1.0-dev"

// runtime is one call of the program.
type runtime struct {
	root    string // where containers' states are, a directory each
	cache   string // of filters; empty: none
	debug   bool
	systemd bool   // cgroups are made by systemd
	self    string // our own program
	in      io.Reader
	out     io.Writer
	errs    io.Writer
}

// globalsOf is a call with the options of all commands; root: where nothing else is said.
func globalsOf(o values, root string) *runtime {
	return &runtime{root: o.text("root", root), cache: o.text("cache", ""), debug: o.has("debug"), systemd: o.has("systemd-cgroup"), self: "/proc/self/exe"}
}

// options of all commands.
var globals = options{"root": true, "log": true, "log-format": true, "cache": true, "debug": false, "systemd-cgroup": false, "rootless": true, "criu": true,
	"version": false, "help": false}

// Half is the program as one of its own halves, which a call of it starts: the one inside,
// which becomes the container's process, and the one that holds namespaces. Called on the
// first thread, before main; false if args ask for neither. Of the first it returns only
// when that has failed.
func Half(args []string) (status int, ok bool) {
	if len(args) != 2 {
		return 0, false
	}
	switch args[1] {
	case insideArg:
		return inside.Main(), true
	case holdArg:
		return hold(), true
	}
	return 0, false
}

// Main runs the program and gives its exit status.
func Main(args []string, in io.Reader, out, errs io.Writer) int {
	if os.Getenv("GOGC") != "off" {
		debug.SetGCPercent(-1) // it lives for milliseconds
	}
	if isAhead(args) {
		var err error
		if args, err = ahead(args[1]); errors.Is(err, io.EOF) {
			return 0
		} else if err != nil {
			fmt.Fprintln(errs, err)
			return 1
		}
	}
	opts, rest, err := parse(args[1:], globals, true)
	if err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	r := globalsOf(opts, "/run/escale-runtime")
	r.in, r.out, r.errs = in, out, errs
	switch {
	case opts.has("version"):
		fmt.Fprintf(out, "escale-runtime version %s\nspec: %s\n", Version, specVersion)
		return 0
	case opts.has("help") || len(rest) == 0:
		fmt.Fprintln(out, usage)
		return 0
	}
	c, ok := commands[rest[0]]
	if !ok {
		return r.fail(opts, fmt.Errorf("no such command: %s\n%s", rest[0], usage))
	}
	own, words, err := parse(rest[1:], c.options, c.inOrder)
	if err == nil {
		var status int
		if status, err = c.run(r, own, words); err == nil {
			return status
		}
	}
	return r.fail(opts, err)
}

const usage = `escale-runtime [--root DIR] [--log FILE] [--log-format text|json] [--cache DIR] [--systemd-cgroup] COMMAND
  create, run, start, state, kill, delete, exec, update, ps, pause, resume, list, features: as runc has them`

// fail says what went wrong: in the log for whoever called, and on the standard error.
func (r *runtime) fail(opts values, err error) int {
	line := "level=error msg=" + fmt.Sprintf("%q", err.Error()) + "\n"
	if opts.text("log-format", "text") == "json" {
		b, merr := codec.WriteRecordLine(&record.Line{Level: "error", Msg: err.Error(), Time: time.Now().Format(time.RFC3339)})
		if merr == nil {
			line = string(b) + "\n"
		}
	}
	if name := opts.text("log", ""); name != "" {
		if f, oerr := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); oerr == nil {
			_, _ = io.WriteString(f, line) // it stands on the standard error as well
			f.Close()
		}
		line = err.Error() + "\n"
	}
	_, _ = io.WriteString(r.errs, line)
	return 1
}
