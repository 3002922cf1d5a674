package builder

import (
	"bytes"
	"strings"
	"testing"

	"escale.dev/escale/internal/builder/request"
	"github.com/containerd/errdefs"
)

func TestHeader(t *testing.T) {
	for name, want := range map[string]string{
		"[2/3] RUN true":           "Step 2/3 : RUN true\n",
		"[build 1/2] COPY a b":     "Step 1/2 (build) : COPY a b\n",
		"[internal] load metadata": "",
		"[1/1] FROM docker.io/library/debian:latest@sha256:12": "Step 1/1 : FROM debian:latest\n",
		"exporting to image": "",
	} {
		if got := header(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestPruneFilter(t *testing.T) {
	for _, c := range []struct {
		filters map[string][]string
		want    string
	}{
		{nil, ""},
		{map[string][]string{"type": {"regular"}}, "type==regular"},
		{map[string][]string{"id": {"a", "b"}, "shared": {""}}, "id==a,shared|id==b,shared"},
		{map[string][]string{"unknown": {"x"}}, ""},
	} {
		got, err := pruneFilter(c.filters)
		if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("%v: %q, %v; want %q", c.filters, got, err, c.want)
		}
	}
	if _, err := pruneFilter(map[string][]string{"id": {"a,type==regular"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a value that is more than a value: %v", err)
	}
}

func TestSolveRequest(t *testing.T) {
	one := "1"
	r, err := solveRequest(&request.Build{
		ID: "me", Tags: []string{"a", "b:1"}, Args: map[string]*string{"A": &one, "B": nil}, Labels: map[string]string{"l": "v"}, NoCache: true, Pull: true,
		Network: "host", ExtraHosts: []string{"h:1.2.3.4"}, Memory: 7, MemorySwap: -1, Remote: "https://example.com/r.git",
	})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"build-arg:A": "1", "label:l": "v", "no-cache": "", "image-resolve-mode": "pull", "force-network-mode": "host", "add-hosts": "h=1.2.3.4", "memory": "7", "memswap": "-1",
		"context": "https://example.com/r.git",
	} {
		if got, ok := r.FrontendAttrs[k]; !ok || got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if _, ok := r.FrontendAttrs["build-arg:B"]; ok || r.Ref != "me" || len(r.Entitlements) != 1 || r.Exporters[0].Attrs["name"] != "docker.io/library/a:latest,docker.io/library/b:1" {
		t.Errorf("asked: %+v", r)
	}
	for _, o := range []request.Build{
		{Tags: []string{"A"}}, {Tags: []string{"a@sha256:" + strings.Repeat("1", 64)}}, {Network: "other"}, {ExtraHosts: []string{"h"}}, {Platform: "a/b/c/d/e"},
	} {
		if _, err := solveRequest(&o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// Whatever a monitor sends, nothing but its frames comes out.
func FuzzSplit(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x03err"))
	f.Add([]byte("\x03\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xffx"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var stdout, stderr bytes.Buffer
		err := split(bytes.NewReader(data), &stdout, &stderr)
		if stdout.Len()+stderr.Len() > len(data) {
			t.Errorf("more came out than went in: %d, %d", stdout.Len(), stderr.Len())
		}
		if err == nil && stdout.Len()+stderr.Len()+8*frames(data) != len(data) {
			t.Errorf("%d bytes of %d, and no error", stdout.Len()+stderr.Len(), len(data))
		}
	})
}

// frames counts the frames of data that are whole.
func frames(data []byte) (n int) {
	for len(data) >= 8 {
		size := int(data[4])<<24 | int(data[5])<<16 | int(data[6])<<8 | int(data[7])
		n++
		data = data[min(len(data), 8+size):]
	}
	return n
}
