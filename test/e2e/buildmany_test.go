package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/testregistry"
)

// listing is what an index lists, as far as tests look at it.
type listing struct {
	Digest, MediaType string
	Annotations       map[string]string
	Platform          struct{ OS, Architecture string }
}

// index reads the index that a tag of a registry stands for, and checks that all
// it lists is there.
func index(t *testing.T, reg *testregistry.Registry, repo, tag string) []listing {
	t.Helper()
	var top struct{ Manifests []listing }
	data := reg.Manifest(repo, tag)
	if err := json.Unmarshal(data, &top); err != nil || len(top.Manifests) == 0 {
		t.Fatalf("%s:%s is no index: %v %s", repo, tag, err, data)
	}
	for _, m := range top.Manifests {
		var doc struct {
			Config listing
			Layers []listing
		}
		data := reg.Manifest(repo, m.Digest)
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatalf("%s:%s: manifest %s: %v %s", repo, tag, m.Digest, err, data)
		}
		for _, b := range append(doc.Layers, doc.Config) {
			if reg.Blob(repo, b.Digest) == nil {
				t.Errorf("%s:%s: blob %s is missing", repo, tag, b.Digest)
			}
			if strings.HasSuffix(b.MediaType, ".layer.v1.tar") {
				t.Errorf("%s:%s: layer %s went out unpacked", repo, tag, b.Digest)
			}
		}
	}
	return top.Manifests
}

// kinds are the architectures that an index lists; attestations are "unknown".
func kinds(list []listing) string {
	out := make([]string, 0, len(list))
	for _, m := range list {
		out = append(out, m.Platform.Architecture)
	}
	return strings.Join(out, " ")
}

// TestBuildPlatforms: an image for several platforms is kept, run, pushed, saved,
// loaded and built on; attestations that were asked for go along.
func TestBuildPlatforms(t *testing.T) {
	eachBuilder(t, harness.Options{}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		api := e.API()
		defer api.Close()
		before := blobFiles(t, e)
		reg := testregistry.New(t)
		for _, arch := range []string{"amd64", "arm64", "s390x"} {
			if err := os.WriteFile(filepath.Join(b.dir, "f-"+arch), []byte(arch), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		must := func(cmd string, args ...string) string {
			t.Helper()
			if cmd == "build" {
				args = append([]string{"--progress", "plain"}, args...)
			}
			out, err := b.cmd(append([]string{cmd}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %v: %v\n%s", cmd, args, err, out)
			}
			return string(out)
		}
		// The stages that run something are the host's.
		b.write(t, "FROM --platform=$BUILDPLATFORM "+image+" AS make\nARG TARGETARCH\nRUN echo made for $TARGETARCH > /made\n"+
			"FROM scratch\nARG TARGETARCH\nCOPY --from=make /bin/busybox /bin/cat\nCOPY --from=make /made /\nCOPY f-$TARGETARCH /f\nCMD [\"/bin/cat\",\"/made\",\"/f\"]\n")
		name := reg.Host() + "/lab/many"
		both := []string{"--platform", "linux/amd64,linux/arm64"}
		must("build", append(both, "-t", name+":1", "--push", ".")...)
		if got := kinds(index(t, reg, "lab/many", "1")); got != "amd64 arm64" {
			t.Errorf("--push of two platforms: the registry has %q", got)
		}
		must("build", append(both, "-t", name+":2", ".")...)
		if got := runImage(ctx, t, api, name+":2"); got != "made for amd64\namd64" {
			t.Errorf("the image of this host says %q", got)
		}
		must("tag", name+":2", name+":3")
		must("push", name+":3")
		if one, three := reg.Manifest("lab/many", "1"), reg.Manifest("lab/many", "3"); string(one) != string(three) {
			t.Errorf("what was pushed later is another index:\n%s\n%s", one, three)
		}
		if got := describe(ctx, t, api, name+":3"); got != "index amd64:image:unpacked arm64:image" {
			t.Errorf("inspected: %s", got)
		}
		pushOne(t, reg, b, name)
		saveMany(ctx, t, api, b, name)
		// Another platform is built on what is here of it.
		b.write(t, "FROM "+name+":2\nCOPY f-s390x /g\n")
		must("build", "--platform", "linux/arm64", "-t", name+":onarm", ".")
		must("push", name+":onarm")
		if data := reg.Manifest("lab/many", "onarm"); bytes.Count(data, []byte(".layer.v1.tar")) != 4 {
			t.Errorf("the image built on it has other layers: %s", data)
		}
		attested(t, reg, b, must)
		forgotten(ctx, t, api, e, name)
		if b.name != "escale" {
			return // of the plugin's builds a history is kept, and what it told of them
		}
		left := 0
		for end := time.Now().Add(harness.Patience(10 * time.Second)); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if left = blobFiles(t, e); left <= before {
				return
			}
		}
		t.Errorf("%d blobs are left of images that were removed, %d were there before", left, before)
	})
}

// describe is the answer of inspect about the manifests of an image.
func describe(ctx context.Context, t *testing.T, api *harness.API, name string) string {
	t.Helper()
	var a struct {
		Descriptor struct{ MediaType string }
		Manifests  []struct {
			Kind      string
			ImageData struct {
				Platform struct{ Architecture string }
				Size     struct{ Unpacked int64 }
			}
		}
	}
	if err := api.Do(ctx, "GET", "/v1.50/images/"+name+"/json?manifests=1", nil, &a); err != nil {
		t.Fatal(err)
	}
	words := []string{"alone"}
	if strings.Contains(a.Descriptor.MediaType, "index") {
		words[0] = "index"
	}
	for _, m := range a.Manifests {
		w := m.ImageData.Platform.Architecture + ":" + m.Kind
		if m.ImageData.Size.Unpacked > 0 {
			w += ":unpacked"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

// pushOne pushes one platform of several.
func pushOne(t *testing.T, reg *testregistry.Registry, b *building, name string) {
	t.Helper()
	if out, err := b.cmd("tag", name+":2", name+":arm").CombinedOutput(); err != nil {
		t.Fatalf("tag: %v %s", err, out)
	}
	if out, err := b.cmd("push", "--platform", "linux/arm64", name+":arm").CombinedOutput(); err != nil {
		t.Fatalf("push --platform: %v %s", err, out)
	}
	want := index(t, reg, "lab/many", "1")[1]
	if got := reg.Manifest("lab/many", "arm"); string(got) != string(reg.Manifest("lab/many", want.Digest)) {
		t.Errorf("push --platform: the registry has %s", got)
	}
	if out, err := b.cmd("push", "--platform", "linux/s390x", name+":arm").CombinedOutput(); err == nil || !strings.Contains(string(out), "does not provide the specified platform (linux/s390x)") {
		t.Errorf("push of a platform that is not there: %v %s", err, out)
	}
}

// saveMany saves and loads all platforms, and one.
func saveMany(ctx context.Context, t *testing.T, api *harness.API, b *building, name string) {
	t.Helper()
	for _, c := range []struct {
		save, load []string
		arch       string
	}{
		{nil, nil, "amd64"},
		{nil, []string{"--platform", "linux/arm64"}, "arm64"},
		{[]string{"--platform", "linux/arm64"}, nil, "arm64"},
	} {
		file := filepath.Join(b.dir, "saved.tar")
		if out, err := b.cmd(append(append([]string{"save", "-o", file}, c.save...), name+":3")...).CombinedOutput(); err != nil {
			t.Fatalf("save %v: %v %s", c.save, err, out)
		}
		if err := api.Do(ctx, "DELETE", "/images/"+name+":3", nil, nil); err != nil {
			t.Fatal(err)
		}
		out, err := b.cmd(append([]string{"load", "-i", file}, c.load...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Loaded image: "+name+":3") {
			t.Fatalf("load %v: %v %s", c.load, err, out)
		}
		var a struct{ Architecture string }
		if err := api.Do(ctx, "GET", "/images/"+name+":3/json", nil, &a); err != nil || a.Architecture != c.arch {
			t.Errorf("save %v, load %v: %v, an image for %q", c.save, c.load, err, a.Architecture)
		}
		if out, err := b.cmd("tag", name+":2", name+":3").CombinedOutput(); err != nil {
			t.Fatalf("tag: %v %s", err, out)
		}
	}
	if out, err := b.cmd("save", "-o", filepath.Join(b.dir, "none.tar"), "--platform", "linux/s390x", name+":3").CombinedOutput(); err == nil || !strings.Contains(string(out), "does not provide the specified platform (linux/s390x)") {
		t.Errorf("save of a platform that is not there: %v %s", err, out)
	}
}

// attested checks what is kept of what is told of results.
func attested(t *testing.T, reg *testregistry.Registry, b *building, must func(string, ...string) string) {
	t.Helper()
	b.write(t, "FROM scratch\nCOPY f-amd64 /f\n")
	name := reg.Host() + "/lab/attested"
	must("build", "-t", name+":plain", "--push", ".")
	if data := reg.Manifest("lab/attested", "plain"); !strings.Contains(string(data), `"layers"`) {
		t.Errorf("without --provenance the registry has %s", data)
	}
	must("build", "-t", name+":p", "--provenance", "mode=max", "--push", ".")
	told := func(tag string) {
		t.Helper()
		list := index(t, reg, "lab/attested", tag)
		if kinds(list) != "amd64 unknown" || list[1].Annotations["vnd.docker.reference.digest"] != list[0].Digest {
			t.Fatalf("%s lists %+v", tag, list)
		}
		var doc struct{ Layers []listing }
		if err := json.Unmarshal(reg.Manifest("lab/attested", list[1].Digest), &doc); err != nil || len(doc.Layers) != 1 ||
			!strings.HasPrefix(doc.Layers[0].Annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/") ||
			!bytes.Contains(reg.Blob("lab/attested", doc.Layers[0].Digest), []byte("buildType")) {
			t.Errorf("%s: the attestation is %+v, %v", tag, doc, err)
		}
	}
	told("p")
	// Kept here, it is pushed later as well.
	must("build", "-t", name+":later", "--attest", "type=provenance,mode=min", ".")
	must("push", name+":later")
	told("later")
	must("build", "--provenance", "true", "--output", "type=oci,dest=attested.tar", ".")
	if data, err := os.ReadFile(filepath.Join(b.dir, "attested.tar")); err != nil || !bytes.Contains(data, []byte("attestation-manifest")) {
		t.Errorf("type=oci: %v, no attestation", err)
	}
	out := must("build", "--provenance", "true", ".")
	if !strings.Contains(out, "WARNING: without a name") {
		t.Errorf("attestations without a name: no warning in\n%s", out)
	}
}

// forgotten removes what was built.
func forgotten(ctx context.Context, t *testing.T, api *harness.API, e *harness.Engine, name string) {
	t.Helper()
	var all []struct{ RepoTags []string }
	if err := api.Do(ctx, "GET", "/v1.50/images/json?manifests=1", nil, &all); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(all, func(i struct{ RepoTags []string }) bool { return slices.Contains(i.RepoTags, name+":2") }) {
		t.Errorf("the list lacks %s:2: %v", name, all)
	}
	clean(t, e)
}

// blobFiles counts the blobs on an engine's disk.
func blobFiles(t *testing.T, e *harness.Engine) int {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(e.DataRoot, "content", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(blobs)
}
