package server

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An index that somebody asked for keeps what it lists, and what refers to it.
func TestCollectIndexAsked(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	child := r.mustPush("m", "", []byte(`{}`), []byte("of the child"))
	index := r.index("m", child)
	outer := r.index("m", index)
	signature := r.refer("m", child, "application/x.signature", nil)
	clock.turn(2 * time.Hour)
	r.want(200, "HEAD", "/v2/m/manifests/"+string(outer), nil, "Accept", accept)
	if c := r.collect(Options{Grace: time.Hour, Untagged: true}); len(c.Manifests)+len(c.Blobs) != 0 {
		t.Errorf("took %+v", c)
	}
	r.mustPull("m", string(outer))
	r.mustPull("m", string(signature))
	clock.turn(2 * time.Hour)
	if c := r.collect(Options{Grace: time.Hour, Untagged: true}); len(c.Manifests) != 4 || r.onDisk() != 0 {
		t.Errorf("took %+v, %d blobs left", c, r.onDisk())
	}
	if left := r.glob("_manifests/revisions/sha256/*", "_referrers/*/*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// index pushes an index without a tag.
func (r *rig) index(name string, manifests ...digest.Digest) digest.Digest {
	r.t.Helper()
	m := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	m.SchemaVersion = 2
	for _, d := range manifests {
		b, err := r.s.store.manifest(r.t.Context(), d)
		if err != nil {
			r.t.Fatal(err)
		}
		doc, err := parseDocument(b)
		if err != nil {
			r.t.Fatal(err)
		}
		m.Manifests = append(m.Manifests, desc(doc.MediaType, b))
	}
	b, err := json.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	d := digest.FromBytes(b)
	r.want(201, "PUT", "/v2/"+name+"/manifests/"+string(d), b, "Content-Type", m.MediaType)
	return d
}

// glob gives what is in repositories, by patterns.
func (r *rig) glob(patterns ...string) (out []string) {
	r.t.Helper()
	for _, p := range patterns {
		list, err := filepath.Glob(filepath.Join(r.s.cfg.Root, repositories, "*", p))
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, list...)
	}
	return out
}

// What a killed or another registry has left of manifests goes; what a tag has
// meant and is still there stays.
func TestCollectTidies(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	first := r.mustPush("m", "t", []byte("{}"), []byte("1"))
	second := r.mustPush("m", "t", []byte("{}"), []byte("2"))
	r.mustPush("m", "t", []byte("{}"), []byte("3"))
	signature := r.refer("m", second, "application/x.signature", nil)
	r.want(202, "DELETE", "/v2/m/manifests/"+string(first), nil)
	if err := os.RemoveAll(filepath.Join(r.s.cfg.Root, revision("m", signature))); err != nil {
		t.Fatal(err)
	}
	clock.turn(2 * time.Hour)
	if r.collect(Options{DryRun: true}); len(r.glob("_manifests/revisions/sha256/*")) != 3 {
		t.Error("a dry run removed something")
	}
	r.collect(Options{Grace: time.Hour})
	for pattern, want := range map[string]int{"_manifests/revisions/sha256/*": 2, "_manifests/tags/t/index/sha256/*": 2, "_referrers/*/*": 0} {
		if got := r.glob(pattern); len(got) != want {
			t.Errorf("%s: %v, want %d", pattern, got, want)
		}
	}
	r.mustPull("m", "t")
	r.mustPull("m", string(second))
}

// A directory that was taken over may have blobs under a second name, by SHA-512.
func TestCollectAliases(t *testing.T) {
	r := start(t, nil)
	clock := r.withClock()
	config, layer := []byte("{}"), []byte("layer")
	was := r.mustPush("m", "t", config, layer)
	alias := digest.SHA512.FromBytes(layer)
	r.want(400, "PUT", "/v2/m/manifests/u", bytes.ReplaceAll(image(config, layer), []byte(digest.FromBytes(layer)), []byte(alias)), "Content-Type", ocispec.MediaTypeImageManifest)
	h, _ := r.want(202, "POST", "/v2/m/blobs/uploads/", nil)
	r.want(400, "PUT", h.Get("Location")+"&digest="+string(alias), layer)
	// As another registry would have it.
	body := bytes.ReplaceAll(image(config, layer), []byte(digest.FromBytes(layer)), []byte(alias))
	d := digest.FromBytes(body)
	for p, content := range map[string]string{
		blobDir(d) + "/data":                          string(body),
		revision("m", d) + "/link":                    string(d),
		tagDir("m", "u") + "/current/link":            string(d),
		layersDir("m") + "/" + split(alias) + "/link": string(digest.FromBytes(layer)),
	} {
		if err := r.s.store.driver.PutContent(t.Context(), p, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	r.want(202, "DELETE", "/v2/m/manifests/"+string(was), nil)
	clock.turn(2 * time.Hour)
	r.collect(Options{Grace: time.Hour, Untagged: true})
	r.want(200, "GET", "/v2/m/blobs/"+string(digest.FromBytes(layer)), nil)
	r.want(200, "GET", "/v2/m/blobs/"+string(alias), nil)
	r.want(202, "DELETE", "/v2/m/manifests/"+string(d), nil)
	clock.turn(2 * time.Hour)
	r.collect(Options{Grace: time.Hour, Untagged: true})
	if left := r.glob("_layers/*/*"); len(left) != 0 || r.onDisk() != 0 {
		t.Errorf("left: %v, %d blobs", left, r.onDisk())
	}
}
