package cli_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/*.txt, each against a fake engine of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			f := startFake(env.T().(testing.TB), env.WorkDir)
			env.Values["engine"] = f
			for _, v := range os.Environ() {
				if strings.HasPrefix(v, "PATH=") {
					env.Vars = append(env.Vars, v)
				}
			}
			env.Setenv("DOCKER_HOST", f.host)
			env.Setenv("SOCKET", strings.TrimPrefix(f.host, "unix://"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"requested": requested,
			"api": func(ts *testscript.TestScript, _ bool, a []string) {
				f := ts.Value("engine").(*fakeEngine)
				f.mu.Lock()
				defer f.mu.Unlock()
				f.version = a[0]
			},
		},
	})
}

// requested REGEXP… checks that the engine got a request that matches each, in
// this order. ! requested REGEXP: that it got none.
func requested(ts *testscript.TestScript, neg bool, patterns []string) {
	f := ts.Value("engine").(*fakeEngine)
	var missing string
	for range 100 {
		missing = ""
		f.mu.Lock()
		rest := f.requests
		for _, p := range patterns {
			re := regexp.MustCompile(p)
			i := 0
			for i < len(rest) && !re.MatchString(rest[i]) {
				i++
			}
			if i == len(rest) {
				missing = p
				break
			}
			rest = rest[i+1:]
		}
		all := strings.Join(f.requests, "\n")
		f.mu.Unlock()
		switch {
		case neg && missing != "":
			return
		case neg:
			ts.Fatalf("requested, but should not be: %v", patterns)
		case missing == "":
			return
		}
		missing = fmt.Sprintf("no request %q (in this order) among\n%s", missing, all)
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s", missing)
}
