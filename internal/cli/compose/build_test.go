package compose

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"

	composefile "escale.dev/escale/internal/compose"
)

// buildKeys says what each key of build must make of a plan; DIR is the project's.
var buildKeys = map[string]string{
	"context":             `"Context":"DIR/ctx"`,
	"dockerfile":          `"Dockerfile":"DIR/ctx/Other"`,
	"dockerfile_inline":   `/Dockerfile"`, // of the other service
	"entitlements":        `"network.host","security.insecure"`,
	"args":                `"Args":["A=1","FROM_ENV=hush"]`,
	"ssh":                 `"SSH":["default"]`,
	"labels":              `"l=m"`,
	"cache_from":          `"CacheFrom":["type=local,src=x"]`,
	"cache_to":            `"CacheTo":["type=local,dest=x"]`,
	"no_cache":            `"NoCache":true`,
	"no_cache_filter":     `"NoCacheFor":["s"]`,
	"additional_contexts": `"Contexts":["other=docker-image://p-b","res=DIR/res"]`,
	"network":             `"Network":"host"`,
	"provenance":          `"type=provenance"`,
	"sbom":                `"type=sbom,disabled=true"`,
	"pull":                `"Pull":true`,
	"target":              `"Target":"t"`,
	"shm_size":            `"shm-size":"1048576"`,
	"extra_hosts":         `"Hosts":["h=1.2.3.4"]`,
	"isolation":           `"Context"`, // default is what there is
	"privileged":          `"security.insecure"`,
	"secrets":             `"Secrets":["id=word,src=DIR/word","id=v,env=FROM_ENV"]`,
	"tags":                `"Tags":["i","i:2"]`,
	"ulimits":             `"ulimit":"nofile=5:6"`,
	"platforms":           `"Platforms":["linux/amd64"]`, // the service's own
}

// TestBuildKeys looks at each key of build that the specification has.
func TestBuildKeys(t *testing.T) {
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_ENV", "") // the plan's secret goes through the environment: put it back
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{"testdata/build.yaml"}, Name: "p", Env: []string{"FROM_ENV=hush"}})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := paper(t, http.NotFoundHandler())
	plans := map[string]string{}
	for _, name := range []string{"a", "b"} {
		sv := p.Services[name]
		b, done, err := supply{s}.plan(p, &sv, building{})
		if err != nil {
			t.Fatal(err)
		}
		if name == "b" {
			if text, err := os.ReadFile(b.Dockerfile); err != nil || string(text) != "FROM scratch" {
				t.Errorf("%q, %v", text, err)
			}
		}
		done()
		text, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		plans[name] = strings.ReplaceAll(string(text), dir, "DIR")
	}
	var spec struct {
		Defs map[string]struct {
			Properties map[string]struct {
				OneOf []struct{ Properties map[string]any }
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(schema.Schema), &spec); err != nil {
		t.Fatal(err)
	}
	keys := spec.Defs["workload_spec"].Properties["build"].OneOf
	if len(keys) != 2 {
		t.Fatalf("build is not what it was: %v", keys)
	}
	for key := range keys[1].Properties {
		want, ok := buildKeys[key]
		in := plans["a"]
		if key == "dockerfile_inline" {
			in = plans["b"]
		}
		switch {
		case !ok:
			t.Errorf("build.%s is in the specification and has no case here", key)
		case !strings.Contains(in, want):
			t.Errorf("build.%s: want %s in\n%s", key, want, in)
		}
	}
}

func TestBuildOrder(t *testing.T) {
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{"testdata/build.yaml"}, Name: "p", Env: []string{"FROM_ENV=hush"}})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := buildOrder(p, []string{"a"}); err != nil || strings.Join(names, " ") != "b a" {
		t.Errorf("%v, %v", names, err)
	}
	b := p.Services["b"]
	b.Build.AdditionalContexts = map[string]string{"x": "service:a"}
	if _, err := buildOrder(p, []string{"a"}); err == nil || !strings.Contains(err.Error(), "its build needs itself") {
		t.Error(err)
	}
}

// What is printed for buildx is what Docker Compose 2.40 prints of the same file, but for
// the order of tags, how secrets are spelled, and the label of its version.
func TestBuildPrint(t *testing.T) {
	t.Chdir("testdata")
	s, out := paper(t, http.NotFoundHandler())
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{"bake.yaml"}, Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if err := (supply{s}).printBake(p, p.ServiceNames(), building{}); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("bake.json")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(out.String(), dir, "DIR"); got != string(want) {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
}

// What another service builds under the same name is built, and not pulled before.
func TestImagesOfOthersBuilds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yaml")
	text := "services: {web: {build: ., image: app}, worker: {image: app}, own: {build: .}, user: {image: p-own}, far: {image: far}, " +
		"again: {image: \"docker.io/library/app:latest\"}, other: {image: \"app:2\"}, odd: {image: \"No Name\"}}"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{file}, Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web": "web", "worker": "web", "own": "own", "user": "own", "far": "", "again": "web", "other": "", "odd": ""} {
		if got := builder(p, name); got != want {
			t.Errorf("%s is built by %q, want %q", name, got, want)
		}
	}
	for _, build := range []bool{false, true} {
		s, out := paper(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			_, _ = w.Write([]byte(`{"message":"No such image"}`))
		}))
		s.flags.dry = true
		if _, err := (supply{s}).images(t.Context(), p, []string{"far", "user", "worker", "again", "own", "web"}, wanted{build: build}); err != nil {
			t.Fatal(err)
		}
		got := out.String()
		for _, want := range []string{"build service web as app", "build service own as p-own", "far  Pulled"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: want %q", got, want)
			}
		}
		if strings.Contains(got, "worker  Pull") || strings.Contains(got, "user  Pull") || strings.Contains(got, "again  Pull") {
			t.Errorf("pulled what is built: %s", got)
		}
	}
}
