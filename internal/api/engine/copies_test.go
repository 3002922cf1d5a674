package engine

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// fakeCopies knows the volume "data", and notes what it is asked.
type fakeCopies struct {
	asked []string
	fail  error // in the middle
}

func (f *fakeCopies) note(what string, a ...any) { f.asked = append(f.asked, fmt.Sprintf(what, a...)) }

func (f *fakeCopies) Backup(_ context.Context, name string, o container.Backup, open func(int64) (io.Writer, error)) error {
	f.note("backup %s %+v", name, o)
	if name != "data" {
		return noSuch("volume")
	}
	w, err := open(1234)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "archive"); err != nil {
		return err
	}
	return f.fail
}

func (f *fakeCopies) Restore(_ context.Context, name string, r io.Reader, o container.RestoreVolume) error {
	b, err := io.ReadAll(r)
	f.note("restore %s %q %+v", name, b, o)
	if name == "full" {
		return errdefs.ErrConflict.WithMessage("volume full is not empty")
	}
	return err
}

func (f *fakeCopies) Clone(_ context.Context, src, dst string, o container.RestoreVolume, told func(copied, total int64)) error {
	f.note("clone %s %s %+v", src, dst, o)
	if src != "data" {
		return noSuch("volume")
	}
	told(5, 10)
	told(20, 10)
	return f.fail
}

func TestCopyRoutes(t *testing.T) {
	copies := new(fakeCopies)
	r := newRig(t, func(r *rig) { r.server.cfg.VolumeCopies = copies })
	for _, c := range []struct {
		method, path, body string
		status             int
		want, asked        string
	}{
		{"GET", "/escale/volumes/data/archive", "", 200, "archive", "backup data {Compression: NoPause:false}"},
		{"GET", "/v1.44/escale/volumes/data/archive?compression=zstd&noPause=true", "", 200, "archive", "backup data {Compression:zstd NoPause:true}"},
		{"GET", "/escale/volumes/nosuch/archive", "", 404, "No such volume", "backup nosuch {Compression: NoPause:false}"},
		{"PUT", "/escale/volumes/data/archive?force=1", "a tar", 204, "", `restore data "a tar" {Force:true NoPause:false}`},
		{"PUT", "/escale/volumes/full/archive", "", 409, "volume full is not empty", `restore full "" {Force:false NoPause:false}`},
		{"POST", "/escale/volumes/data/clone?to=two&noPause=1", "", 200, `"current":5,"total":10`, "clone data two {Force:false NoPause:true}"},
		{"POST", "/escale/volumes/data/clone?to=two", "", 200, `"status":"Cloned","id":"two"`, "clone data two {Force:false NoPause:false}"},
		{"POST", "/escale/volumes/data/clone", "", 400, "'to' cannot be empty", ""},
		{"POST", "/escale/volumes/nosuch/clone?to=two", "", 404, "No such volume", "clone nosuch two {Force:false NoPause:false}"},
	} {
		copies.asked = nil
		status, h, body := r.do(c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.want) || strings.Join(copies.asked, ";") != c.asked {
			t.Errorf("%s %s: %d %s, asked %q", c.method, c.path, status, body, copies.asked)
		}
		if c.want == "archive" && (h.Get(sizeHeader) != "1234" || h.Get("Content-Type") != "application/x-tar") {
			t.Errorf("%s: %v", c.path, h)
		}
	}
	copies.fail = fmt.Errorf("the disk is full")
	if status, _, body := r.do("POST", "/escale/volumes/data/clone?to=two", ""); status != 200 || !strings.Contains(body, `"error":"the disk is full"`) || strings.Contains(body, "Cloned") {
		t.Errorf("failed half-way: %d %s", status, body)
	}
}
