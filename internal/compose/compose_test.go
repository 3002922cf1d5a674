package compose

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// app reads a file as an app; what depends on where it lies is taken out.
func app(t *testing.T, o Options) (*cluster.AppSpec, string, error) {
	t.Helper()
	p, err := Load(t.Context(), o)
	if err != nil {
		return nil, "", err
	}
	spec, err := App(p, false)
	if err != nil {
		return nil, "", err
	}
	spec.Source = ""
	b, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	b = regexp.MustCompile(`("com.docker.compose.config-hash": )"[0-9a-f]{64}"`).ReplaceAll(b, []byte(`$1"HASH"`))
	return spec, strings.ReplaceAll(string(b), wd, "WD") + "\n", nil
}

func TestApp(t *testing.T) {
	for name, o := range map[string]Options{
		"identidock": {Name: "dock"},
		"all":        {Env: []string{"SECRET=hush", "WHO=me"}},
		"first":      {Name: "v1"},
	} {
		t.Run(name, func(t *testing.T) {
			o.Files = []string{filepath.Join("testdata", name+".yaml")}
			_, got, err := app(t, o)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("it is not as in %s (written anew with -update):\n%s", golden, got)
			}
		})
	}
}

// What is wrong or cannot be had is said, with where it stands.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"not yaml":        {"services: [", "yaml"},
		"unknown key":     {"services: {a: {image: x, nonsense: 1}}", "nonsense"},
		"no image":        {"services: {a: {}}", `service "a" has neither an image nor a build context`},
		"cycle":           {"services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "dependency cycle"},
		"unknown network": {"services: {a: {image: x, networks: [n]}}", `undefined network n`},
		"variable":        {"services: {a: {image: \"${X?must be set}\"}}", "must be set"},
		"port":            {"services: {a: {image: x, ports: [\"1:99999\"]}}", "invalid"},
		"mode":            {"services: {a: {image: x, deploy: {mode: odd}}}", `compose.yaml:1: service "a": deploy.mode: "odd"`},
		"order":           {"services: {a: {image: x, deploy: {update_config: {order: odd}}}}", "update_config.order value must be one of"},
		"constraint":      {"services: {a: {image: x, deploy: {placement: {constraints: [odd]}}}}", "constraint expected one operator"},
		"address":         {"services: {a: {image: x, networks: {default: {ipv4_address: odd}}}}", `"odd"`},
		"mac":             {"services: {a: {image: x, networks: {default: {mac_address: odd}}}}", "odd"},
		"secret":          {"services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {environment: NOSUCH}}", `compose.yaml:2: secret "s": environment: environment variable "NOSUCH" is not set`},
		"secret's file":   {"services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {file: ./nosuch}}", "nosuch: no such file"},
		"id":              {"services: {a: {image: x, secrets: [{source: s, uid: odd}]}}\nsecrets: {s: {environment: WHO}}", `"odd" is no id`},
		"provider":        {"services: {a: {provider: {type: x}}}", "provider: not possible"},
		"hook":            {"services: {a: {image: x, pre_start: [{command: x}]}}", "pre_start"},
		"schedule":        {"services: {a: {image: x, x-escale-schedule: 5}}", "x-escale-schedule"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "compose.yaml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := app(t, Options{Files: []string{path}, Name: "p", Env: []string{"WHO=me"}})
			if err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// Which files, which name, which services.
func TestLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "My.Project")
	for name, text := range map[string]string{
		"compose.yaml":          "services: {a: {image: \"a:${TAG}\"}, b: {image: b, depends_on: [a]}, c: {image: c, profiles: [debug]}}",
		"compose.override.yaml": "services: {a: {command: over}}",
		".env":                  "TAG=7\n",
		"other.yaml":            "name: other\nservices: {a: {image: \"a:${TAG}\"}}",
		"sub/x":                 "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		o                         Options
		project, services, aImage string
	}{
		"the directory":      {Options{Dir: dir}, "myproject", "a b", "a:7"},
		"a file":             {Options{Files: []string{filepath.Join(dir, "other.yaml")}}, "other", "a", "a:7"},
		"-p":                 {Options{Files: []string{filepath.Join(dir, "other.yaml")}, Name: "mine"}, "mine", "a", "a:7"},
		"COMPOSE_":           {Options{Dir: dir, Env: []string{"COMPOSE_FILE=" + filepath.Join(dir, "other.yaml"), "COMPOSE_PROJECT_NAME=env", "TAG=8"}}, "env", "a", "a:8"},
		"a profile":          {Options{Dir: dir, Profiles: []string{"debug"}}, "myproject", "a b c", "a:7"},
		"COMPOSE_PROFILES":   {Options{Dir: dir, Env: []string{"COMPOSE_PROFILES=x, debug"}}, "myproject", "a b c", "a:7"},
		"some services":      {Options{Dir: dir, Services: []string{"a"}}, "myproject", "a", "a:7"},
		"with what it needs": {Options{Dir: dir, Services: []string{"b"}}, "myproject", "a b", "a:7"},
		"as it is written":   {Options{Dir: dir, Verbatim: true}, "myproject", "a b", "a:${TAG}"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Load(t.Context(), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.ServiceNames(), " "); p.Name != c.project || got != c.services || p.Services["a"].Image != c.aImage {
				t.Errorf("%s with %s, a is %s; want %s with %s, %s", p.Name, got, p.Services["a"].Image, c.project, c.services, c.aImage)
			}
		})
	}
	if _, err := Load(t.Context(), Options{Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no configuration file provided") {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(t.Context(), Options{Dir: dir, Services: []string{"nosuch"}}); err == nil || !strings.Contains(err.Error(), "no such service: nosuch") {
		t.Errorf("no service: %v", err)
	}
}

// A swarm has secrets and configs of its own; a host has not.
func TestExternalFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	text := "services: {a: {image: i, secrets: [s], configs: [c]}}\nsecrets: {s: {external: true, name: theirs}}\nconfigs: {c: {external: true}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Load(t.Context(), Options{Files: []string{file}, Name: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := App(p, false); err == nil || !strings.Contains(err.Error(), "compose.yaml:2: ") {
		t.Errorf("of a host: %v", err)
	}
	spec, err := App(p, true)
	if err != nil {
		t.Fatal(err)
	}
	if s, c := spec.Secrets["s"], spec.Configs["c"]; !s.External || s.Name != "theirs" || !c.External || len(s.Data)+len(c.Data) > 0 {
		t.Errorf("of a swarm: %+v, %+v", s, c)
	}
}

// The same file means the same each time that it is read: what an app is compared by has one order.
func TestExtraHosts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	text := "services: {a: {image: i, extra_hosts: [\"h5=10.0.0.5\", \"h1=10.0.0.1\", \"h4=10.0.0.9\", \"h4=10.0.0.4\", \"h2=10.0.0.2\", \"h3=::1\"]}}"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		spec, _, err := app(t, Options{Files: []string{file}, Name: "shop"})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(spec.Services["a"].Task.Host.ExtraHosts, " "), "h1:10.0.0.1 h2:10.0.0.2 h3:::1 h4:10.0.0.9 h4:10.0.0.4 h5:10.0.0.5"; got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
}
