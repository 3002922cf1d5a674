package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDefaultRuntime: our own where it can be had, else runc and a line that says why;
// and whatever somebody chose is what he gets.
func TestDefaultRuntime(t *testing.T) {
	fine := func() error { return nil }
	here := func(string) (string, error) { return "/x", nil }
	for _, c := range []struct {
		what      string
		kernel    error
		missing   bool
		own       string // what the configuration gives the name native
		want, why string
	}{
		{"all there", nil, false, "", "native", ""},
		{"an old kernel", errors.New("too old"), false, "", "runc", "too old"},
		{"no program", nil, true, "", "runc", "escale-runtime is missing"},
		{"another program by the name", errors.New("too old"), true, "/own", "native", ""},
	} {
		kernel, find := fine, here
		if c.kernel != nil {
			kernel = func() error { return c.kernel }
		}
		if c.missing {
			find = func(program string) (string, error) { return "", errors.New(program + " is missing") }
		}
		conf := &Config{Runtimes: map[string]string{}}
		if c.own != "" {
			conf.Runtimes[ownRuntime] = c.own
		}
		conf.chooseRuntime(kernel, find)
		var said strings.Builder
		conf.tellRuntime(slog.New(slog.NewTextHandler(&said, nil)))
		if conf.Runtime != c.want || (c.why == "") != (said.Len() == 0) || !strings.Contains(said.String(), c.why) {
			t.Errorf("%s: %s, %q; want %s, %q", c.what, conf.Runtime, said.String(), c.want, c.why)
		}
	}
	c, err := parse(t, `{"default-runtime": "native"}`)
	if err != nil || c.Runtime != ownRuntime || c.notNative != "" {
		t.Errorf("chosen: %q (%q), %v", c.Runtime, c.notNative, err)
	}
}

// TestRuntimesInstalled: of runc and our own one may be missing, but not the default.
func TestRuntimesInstalled(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	install := func(names ...string) {
		t.Helper()
		for _, old := range []string{"runc", "escale-runtime"} {
			_ = os.Remove(filepath.Join(dir, old)) // of the case before
		}
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		there  []string
		chosen string
		names  int
		err    string
	}{
		{[]string{"runc", "escale-runtime"}, "native", 2, ""},
		{[]string{"escale-runtime"}, "native", 1, ""},
		{[]string{"runc"}, "runc", 1, ""},
		{[]string{"runc"}, "native", 0, "escale-runtime is missing"},
		{[]string{"escale-runtime"}, "runc", 0, "runc is missing"},
	} {
		install(c.there...)
		got, err := (&Config{Runtime: c.chosen, ExecRoot: dir}).runtimes()
		if len(got) != c.names || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v, by default %s: %v, %v; want %d, %q", c.there, c.chosen, got, err, c.names, c.err)
		}
	}
	install()
	c, err := parse(t, "")
	if err != nil || c.Runtime != runc {
		t.Fatalf("nothing installed: %q, %v", c.Runtime, err)
	}
	if _, err := c.runtimes(); err == nil || !strings.Contains(err.Error(), "escale-runtime is missing") || !strings.Contains(err.Error(), "; and runc is missing") {
		t.Errorf("nothing installed: %v", err)
	}
}
