package native

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Hooks, outside and inside, have nothing open but their streams, whatever the caller has.
func TestHooksInheritNothing(t *testing.T) {
	l := newLab(t, "true")
	log := filepath.Join(l.bundle, "root/log")
	hook := func(name, log string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "for n in 3 4 5 6 7 8 9; do (: <&$n) 2>/dev/null && echo $n; done >" + log + "-" + name + "; true"}, Env: []string{"PATH=/bin:/usr/bin"}}}
	}
	l.spec.Hooks = &specs.Hooks{CreateRuntime: hook("createRuntime", log), CreateContainer: hook("createContainer", log), Poststart: hook("poststart", log),
		Poststop: hook("poststop", log), StartContainer: hook("startContainer", "/log")}
	l.write()
	cmd := l.command("run", "--preserve-fds", "2", l.id)
	for range 4 {
		f, err := os.Open(l.bundle)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		said, err := os.ReadFile(log + "-" + name)
		if err != nil || len(said) != 0 {
			t.Errorf("%s has %q, %v", name, said, err)
		}
	}
}

// Sockets that the caller hands on by systemd's way are the program's, who is told of them.
func TestListenFDs(t *testing.T) {
	l := newLab(t, "echo $LISTEN_FDS $LISTEN_PID $$; cat <&3; cat <&4; cat <&5 2>/dev/null || echo no more")
	l.write()
	for _, c := range []struct{ pid, preserve, want string }{{"$$", "0", "1 1 1\nfirst\nno more"}, {"$$", "1", "1 1 1\nfirst\nsecond\nno more"}, {"1", "1", "1\nfirst\nno more"}} {
		cmd := l.command()
		script := fmt.Sprintf("LISTEN_FDS=1 LISTEN_PID=%s exec %s --root %s run --preserve-fds %s %s", c.pid, "/proc/"+strconv.Itoa(os.Getpid())+"/exe", l.states, c.preserve, l.id)
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", script}
		for _, word := range []string{"first", "second"} {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := w.WriteString(word + "\n"); err != nil {
				t.Fatal(err)
			}
			w.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, r)
		}
		out, err := cmd.CombinedOutput()
		var lines []string
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "bad") && !strings.Contains(line, "Bad") { // the shell says so too where there is none
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		if got := strings.Join(lines, "\n"); err != nil || got != c.want {
			t.Errorf("pid %s, %s more: %v: %q, want %q", c.pid, c.preserve, err, got, c.want)
		}
	}
}

// Who deletes a container that somebody makes waits for it; what either does is whole,
// and others may make one of the same name at once.
func TestDeletedWhileMade(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.write()
	var over sync.WaitGroup
	for i := range 4 {
		over.Go(func() {
			for n := range 6 {
				if i%2 == 0 {
					// Its streams are not ours: who would read from them waited for the container.
					name := filepath.Join(l.bundle, fmt.Sprintf("log-%d-%d", i, n))
					cmd := l.command("--log", name, "run", "-d", l.id)
					err := cmd.Run()
					said, _ := os.ReadFile(name) // there where it failed
					if err != nil && !strings.Contains(string(said), "already exists") && !strings.Contains(string(said), "does not exist") {
						t.Errorf("run: %v: %s", err, said)
					}
				} else if out, err := l.call("delete", "--force", l.id); err != nil {
					t.Errorf("delete: %v: %s", err, out)
				}
				time.Sleep(time.Duration(n) * time.Millisecond)
			}
		})
	}
	over.Wait()
	l.must("delete", "--force", l.id)
	l.nothingLeft()
	// What is being made is not deleted without force either.
	if err := os.MkdirAll(filepath.Join(l.states, l.id), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &runtime{root: l.states}
	lock, err := r.lock(l.id)
	if err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { _, err := l.call("delete", "--force", l.id); deleted <- err }()
	select {
	case err := <-deleted:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	lock.Close()
	if err := <-deleted; err != nil || exists(filepath.Join(l.states, l.id)) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := r.lock(l.id); err != errNone {
		t.Errorf("of none: %v", err)
	}
}
