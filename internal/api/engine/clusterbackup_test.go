package engine

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster/swarm"
	"github.com/containerd/errdefs"
)

// paperBackups saves a few words.
type paperBackups struct {
	asked swarm.Restoration
	body  string
	fails error // after some of it
}

func (p *paperBackups) Backup(_ context.Context, passphrase string, begin func(bool) io.Writer) error {
	if passphrase == "" {
		return errdefs.ErrInvalidArgument.WithMessage("a passphrase is needed")
	}
	if _, err := io.WriteString(begin(passphrase == "stale"), "all of it"); err != nil {
		return err
	}
	return p.fails
}

func (p *paperBackups) Restore(_ context.Context, r io.Reader, o swarm.Restoration) (swarm.Restored, error) {
	raw, err := io.ReadAll(r)
	if p.asked, p.body = o, string(raw); err == nil && o.Passphrase == "wrong" {
		err = errdefs.ErrPermissionDenied.WithMessage("the passphrase does not open it")
	}
	return swarm.Restored{Cluster: "c1", Node: "n1", Revision: 7, Objects: 9}, err
}

func TestClusterBackupRoutes(t *testing.T) {
	p := &paperBackups{}
	r := newRig(t, func(r *rig) { r.server.cfg.Backups = p })
	ask := func(method, path, secret, body string) *http.Response {
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		if secret != "" {
			req.Header.Set(secretHeader, secret)
		}
		w := httptest.NewRecorder()
		r.server.Handler().ServeHTTP(w, req)
		return w.Result()
	}
	sealed := func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		method, path, secret string
		status               int
		words                string
	}{
		{"GET", "/escale/cluster/backup", "", 400, "a passphrase is needed"},
		{"GET", "/escale/cluster/backup", "{", 400, "invalid Escale-Backup-Secret"},
		{"GET", "/v1.51/escale/cluster/backup", sealed("x"), 400, "invalid Escale-Backup-Secret"},
		{"GET", "/v1.51/escale/cluster/backup", sealed(`{"Passphrase":"correct horse"}`), 200, "all of it"},
		{"POST", "/escale/cluster/restore", sealed(`{"Passphrase":"wrong"}`), 403, "does not open it"},
		{"POST", "/escale/cluster/restore?force=1&listenAddr=a&advertiseAddr=b&dataPathAddr=c", sealed(`{"UnlockKey":"key"}`), 200, `"Cluster":"c1","Node":"n1"`},
	} {
		res := ask(c.method, c.path, c.secret, "a file")
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != c.status || !strings.Contains(string(body), c.words) || res.Header.Get(staleHeader) != "" {
			t.Errorf("%s %s: %d %s %v", c.method, c.path, res.StatusCode, body, err)
		}
	}
	if want := (swarm.Restoration{UnlockKey: "key", Force: true, ListenAddr: "a", AdvertiseAddr: "b", DataPathAddr: "c"}); p.asked != want || p.body != "a file" {
		t.Errorf("%+v %q", p.asked, p.body)
	}
	if res := ask("GET", "/escale/cluster/backup", sealed(`{"Passphrase":"stale"}`), ""); res.Header.Get(staleHeader) != "true" {
		t.Errorf("%v", res.Header)
	}
	p.fails = errors.New("the disk is gone")
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("a backup that was cut off looks whole")
		}
	}()
	ask("GET", "/escale/cluster/backup", sealed(`{"Passphrase":"correct horse"}`), "")
}
