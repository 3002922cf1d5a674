package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
	"github.com/opencontainers/go-digest"
)

// inBucket, while TestBucket runs the other tests, gives their registries
// buckets; nil: they are on the disk.
var inBucket func(*Config)

// fakeS3 is a server of S3's protocol; fault may answer in its place.
func fakeS3(t *testing.T, fault func(w http.ResponseWriter, r *http.Request) bool) *S3 {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	backend := s3mem.New()
	if err := backend.CreateBucket("images"); err != nil {
		t.Fatal(err)
	}
	h := gofakes3.New(backend).Server()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s3, err := ParseS3(srv.URL + "/images/some/where")
	if err != nil {
		t.Fatal(err)
	}
	return s3
}

// keys are the objects of a registry's bucket, its own or all.
func (r *rig) keys(all bool) []string {
	r.t.Helper()
	b, ok := r.s.store.driver.(*bucket)
	if !ok {
		r.t.Fatal("no bucket")
	}
	prefix := b.prefix
	if all {
		prefix = ""
	}
	var out []string
	for o := range b.client.Client.ListObjectsIter(r.t.Context(), b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			r.t.Fatal(o.Err)
		}
		out = append(out, o.Key)
	}
	return out
}

// TestBucket: what holds on the disk holds in a bucket: uploads, deletion, pages,
// referrers, leases and collections.
func TestBucket(t *testing.T) {
	s3 := fakeS3(t, nil)
	inBucket = func(c *Config) {
		own := *s3 // of one root, so that a registry that starts again finds it
		own.Prefix = fmt.Sprintf("%x/", sha256.Sum256([]byte(c.Root)))[:9] + "/"
		c.S3 = &own
	}
	defer func() { inBucket = nil }()
	for name, test := range map[string]func(*testing.T){
		"deletion": TestDeletion, "tags": TestThousandTags, "upload": TestUploadResumed, "refused": TestRefused, "skopeo": TestSkopeo,
		"collect": TestCollect, "leases": TestCollectLeases, "untagged": TestCollectUntagged, "uploads": TestCollectUploads,
		"request": TestCollectRequest, "beside": TestCollectBesideClients, "asked": TestCollectIndexAsked,
		"referrers": TestReferrers, "referrer refused": TestReferrerRefused, "referrers by page": TestReferrersByPage,
		"fallback": TestReferrersOfTheFallbackTag, "engine": TestContentOfTheEngine, "others": TestPushOfWhatOthersHave,
		"conformance": TestConformance,
	} {
		t.Run(name, test)
	}
}

// TestBucketFaults: a bucket that is away, another's, or was left amid a
// transfer; large blobs; and wrong words.
func TestBucketFaults(t *testing.T) {
	var down atomic.Bool
	s3 := fakeS3(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			http.Error(w, "down", http.StatusForbidden) // one that is not tried again
		}
		return down.Load()
	})
	down.Store(true)
	r := start(t, func(c *Config) { c.S3 = s3 })
	if status, _, b := r.do("GET", "/v2/", nil); status != 500 && status != 503 {
		t.Errorf("a bucket that is away: %d %s", status, b)
	}
	down.Store(false)
	large := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16) // in several parts
	r.mustPush("lab/app", "v1", []byte("config"), large, []byte("small"))
	if _, got := r.want(200, "GET", "/v2/lab/app/blobs/"+string(digest.FromBytes(large)), nil); !bytes.Equal(got, large) {
		t.Errorf("a large blob: %d bytes of %d", len(got), len(large))
	}
	r.mustPull("lab/app", "v1")
	if _, part := r.want(206, "GET", "/v2/lab/app/blobs/"+string(digest.FromBytes(large)), nil, "Range", "bytes=16-31"); string(part) != "0123456789abcdef" {
		t.Errorf("a part of a blob: %q", part)
	}
	if left, err := filepath.Glob(filepath.Join(r.s.cfg.Root, "docker/registry/v2/blobs/*")); err != nil || len(left) > 0 {
		t.Errorf("blobs on the disk: %v %v", left, err)
	}
	for _, k := range r.keys(true) {
		if !strings.HasPrefix(k, "some/where/") || strings.Contains(k, "_uploads") {
			t.Errorf("object %s", k)
		}
	}
	down.Store(true)
	if status, _, _ := r.do("GET", "/healthz", nil); status != 503 {
		t.Errorf("health without the bucket: %d", status)
	}
	if _, err := r.push("lab/app", "v2", []byte("config 2")); err == nil {
		t.Error("a push without the bucket is taken")
	}
	down.Store(false)
	r.mustPush("lab/app", "v2", []byte("config 2"))
	// Another root is another registry, which may not collect here.
	other := start(t, func(c *Config) { c.S3 = s3 })
	if err := other.s.open(t.Context()); err == nil || !strings.Contains(err.Error(), "another registry's") {
		t.Errorf("a bucket of another's: %v", err)
	}
	// What a killed registry was sending is ended by the next.
	b, _ := r.s.store.driver.(*bucket)
	key := b.prefix + "docker/registry/v2/blobs/sha256/00/left/data"
	if _, err := b.client.NewMultipartUpload(t.Context(), b.name, key, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.s.close(); err != nil {
		t.Fatal(err)
	}
	root := r.s.cfg.Root
	r = start(t, func(c *Config) { c.Root, c.S3 = root, s3 })
	r.mustPull("lab/app", "v1")
	if left, err := b.client.ListMultipartUploads(context.WithoutCancel(t.Context()), b.name, b.prefix, "", "", "", 10); err == nil && len(left.Uploads) > 0 {
		t.Errorf("transfers that nobody ends: %+v", left.Uploads)
	}
	if got := r.collect(Options{Grace: 1}); len(got.Blobs) != 0 {
		t.Errorf("collected what is in use: %v", got.Blobs)
	}
}

func TestParseS3(t *testing.T) {
	got, err := ParseS3("https://s3.example:9000/images/a/b/")
	if err != nil || *got != (S3{Endpoint: "s3.example:9000", Bucket: "images", Prefix: "a/b/"}) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := ParseS3("http://[::1]:9000/images"); err != nil || *got != (S3{Endpoint: "[::1]:9000", Bucket: "images", Plain: true}) {
		t.Errorf("%+v %v", got, err)
	}
	for text, want := range map[string]string{
		"": "want http", "s3://images": "want http", "https://h": "no bucket is named", "https://h/": "no bucket is named", "https://u:secret@h/b": "u:xxxxx@h", "https://h/b?x=1": "want http",
	} {
		if _, err := ParseS3(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = a\naws_secret_access_key = b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&S3{Endpoint: "h", Bucket: "images", Credentials: file}).validate(false); err != nil {
		t.Error(err)
	}
}
