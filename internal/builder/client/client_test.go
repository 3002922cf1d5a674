package client

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/internal/builder/plan"
	"github.com/moby/buildkit/client"
)

func prepared(t *testing.T, p plan.Build, in string) (*build, error) {
	t.Helper()
	if p.Context == "" {
		p.Context = t.TempDir()
	}
	b := &build{plan: &p, streams: Streams{In: strings.NewReader(in), Out: io.Discard, Err: io.Discard}}
	b.solve.FrontendAttrs = map[string]string{}
	t.Cleanup(b.close)
	prepare := func() error { return b.context(t.Context()) }
	for _, step := range []func() error{b.attributes, prepare, b.contexts, b.outputs, b.caches} {
		if err := step(); err != nil {
			return b, err
		}
	}
	return b, nil
}

// Options become the frontend's attributes.
func TestAttributes(t *testing.T) {
	b, err := prepared(t, plan.Build{
		Args: []string{"A=1=2", "B="}, Labels: []string{"l=x"}, Target: "t", Pull: true, NoCacheFor: []string{"one", "two"}, Network: "host",
		Platforms: []string{"linux/arm64,linux/amd64", "linux/arm64/v8"}, Limits: map[string]string{"memory": "5"}, Attests: []string{"type=sbom", "type=provenance,mode=max", "type=sbom,disabled=true"},
		Outputs: []string{"type=oci,dest=" + filepath.Join(t.TempDir(), "x")},
	}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"build-arg:A": "1=2", "build-arg:B": "", "label:l": "x", "target": "t", "image-resolve-mode": "pull", "no-cache": "one,two", "force-network-mode": "host",
		"platform": "linux/arm64,linux/amd64", "memory": "5", "attest:provenance": "mode=max", "filename": "Dockerfile",
	}
	if got := b.solve.FrontendAttrs; !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if len(b.solve.AllowedEntitlements) != 1 || b.solve.AllowedEntitlements[0] != "network.host" {
		t.Errorf("entitlements: %v", b.solve.AllowedEntitlements)
	}
}

// Outputs become exporters; the image has the build's tags.
func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		outputs      []string
		push, load   bool
		types, wrong string
	}{
		{types: "moby"},
		{load: true, types: "moby"},
		{push: true, types: "moby"},
		{outputs: []string{dir}, types: "local"},
		{outputs: []string{"type=local,dest=" + dir, "type=docker"}, types: "local moby"},
		{outputs: []string{"-"}, types: "tar"},
		{outputs: []string{"type=docker,dest=" + dir + "/d.tar"}, types: "docker"},
		{outputs: []string{"type=oci,tar=false,dest=" + dir}, types: "oci"},
		{outputs: []string{"type=cacheonly"}},
		{outputs: []string{"type=registry"}, types: "moby"},
		{outputs: []string{"type=oci,dest=" + dir}, wrong: "is a directory"},
		{outputs: []string{"type=local"}, wrong: "dest is required"},
		{outputs: []string{"type=tar,dest=" + dir + "/none/x"}, wrong: "invalid destination file"},
		{outputs: []string{"type=x"}, wrong: "not known"},
		{outputs: []string{"type=image,dest=x"}, wrong: "dest is not supported"},
		{outputs: []string{`type="x`}, wrong: "invalid value"},
	} {
		b, err := prepared(t, plan.Build{Outputs: c.outputs, Push: c.push, Load: c.load, Tags: []string{"a", "b:2"}}, "")
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%v: %v, want %q", c.outputs, err, c.wrong)
			}
			continue
		}
		var types []string
		for _, e := range b.solve.Exports {
			types = append(types, e.Type)
			named := e.Type != client.ExporterLocal && e.Type != client.ExporterTar
			if got := e.Attrs["name"]; named != (got == "docker.io/library/a:latest,docker.io/library/b:2") {
				t.Errorf("%v: named %q", c.outputs, got)
			}
			if push := e.Attrs["push"] == "true"; push != (c.push || len(c.outputs) == 1 && c.outputs[0] == "type=registry") {
				t.Errorf("%v: push %t", c.outputs, push)
			}
		}
		if got := strings.Join(types, " "); err != nil || got != c.types {
			t.Errorf("%v: %q, %v, want %q", c.outputs, got, err, c.types)
		}
	}
}

// What comes on stdin is told apart, and URLs from paths.
func TestContextKinds(t *testing.T) {
	tmp := t.TempDir()
	gzip := "\x1f\x8b\x08" + strings.Repeat("x", 600)
	for _, c := range []struct{ context, file, in, attr, mounts string }{
		{"-", "", "FROM x", "", "context dockerfile"},
		{"-", "", gzip, "http", ""},
		{"https://h.example/x.git#main", "", "", "https://h.example/x.git#main", ""},
		{"git@h.example:x.git", "sub/File", "", "git@h.example:x.git", ""},
		{"https://h.example/x.tar", "-", "FROM x", "https://h.example/x.tar", "dockerfile"},
		{"", "-", "FROM x", "", "context dockerfile"},
	} {
		dir := t.TempDir() // where it would be of no use to look for what is left
		if c.context == "" {
			c.context = dir
		}
		t.Setenv("TMPDIR", tmp)
		b, err := prepared(t, plan.Build{Context: c.context, Dockerfile: c.file}, c.in)
		if err != nil {
			t.Errorf("%q: %v", c.context, err)
			continue
		}
		var mounts []string
		for _, name := range []string{"context", "dockerfile"} {
			if b.solve.LocalMounts[name] != nil {
				mounts = append(mounts, name)
			}
		}
		if got := b.solve.FrontendAttrs["context"]; !strings.HasPrefix(got, c.attr) || (got == "") != (c.attr == "") || strings.Join(mounts, " ") != c.mounts {
			t.Errorf("%q: context %q, mounts %v", c.context, got, mounts)
		}
		b.close()
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// A plan that is none is told.
func TestRunWithoutPlan(t *testing.T) {
	var said bytes.Buffer
	if code := Run(t.Context(), strings.NewReader("{"), Streams{Out: io.Discard, Err: &said}); code != 1 || !strings.Contains(said.String(), "ERROR: failed to build: plan of a build") {
		t.Errorf("code %d, %q", code, &said)
	}
}

// FuzzPlan: whatever the options are, there is an error or a build.
func FuzzPlan(f *testing.F) {
	f.Add("type=local,dest=x", "id=a,src=b", "type=registry,ref=x", "linux/amd64", "a=b")
	f.Add(`type=oci,"dest=a,b"`, "id", "x", "local,", "a=oci-layout://p:t@sha256:00")
	f.Fuzz(func(t *testing.T, output, secret, cache, platform, context string) {
		p := plan.Build{Context: t.TempDir(), Outputs: []string{output}, Secrets: []string{secret}, CacheFrom: []string{cache}, CacheTo: []string{cache}, Platforms: []string{platform}, Contexts: []string{context}, Attests: []string{cache}, Annotations: []string{secret}}
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		read, err := plan.Read(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		b := &build{plan: read, streams: Streams{In: strings.NewReader(output), Out: io.Discard, Err: io.Discard}}
		b.solve.FrontendAttrs = map[string]string{}
		defer b.close()
		_, _ = secretSources(read)
		prepare := func() error { return b.context(t.Context()) }
		for _, step := range []func() error{b.attributes, prepare, b.outputs, b.caches} {
			if err := step(); err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
		}
		if bare(output) && output != "" && output != "-" && len(b.solve.Exports) == 1 && b.solve.Exports[0].Type != client.ExporterLocal {
			t.Errorf("%q became %s", output, b.solve.Exports[0].Type)
		}
	})
}
