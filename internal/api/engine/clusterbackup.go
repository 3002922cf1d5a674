package engine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"escale.dev/escale/internal/cluster/swarm"
)

// Backups saves the swarm, and begins it anew from what was saved.
type Backups interface {
	Backup(ctx context.Context, passphrase string, begin func(stale bool) io.Writer) error
	Restore(ctx context.Context, r io.Reader, o swarm.Restoration) (swarm.Restored, error)
}

// clusterRoutes are Escale's own, for clusters: docs/api/escale.yaml describes them.
type clusterRoutes struct{ archiveRoutes }

func (c clusterRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/escale/cluster/backup", c.backup},
		{http.MethodPost, "/escale/cluster/restore", c.restore},
	}
}

// The headers of backups.
const (
	secretHeader = "Escale-Backup-Secret" // what it is sealed with
	staleHeader  = "Escale-Backup-Stale"  // the manager has not heard of most others
)

// backupSecret is what the header has, as JSON in base64.
type backupSecret struct{ Passphrase, UnlockKey string }

func secretOf(r *request) (s backupSecret, err error) {
	text := r.Header.Get(secretHeader)
	if text == "" {
		return s, nil
	}
	raw, err := base64.URLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		return s, invalidf("invalid %s: JSON in base64 wanted", secretHeader) // what it has is secret
	}
	return s, nil
}

func (c clusterRoutes) backup(w *response, r *request) error {
	secret, err := secretOf(r)
	if err != nil {
		return err
	}
	err = c.cfg.Backups.Backup(r.Context(), secret.Passphrase, func(stale bool) io.Writer {
		w.Header().Set("Content-Type", "application/octet-stream")
		if stale {
			w.Header().Set(staleHeader, "true")
		}
		return steadyWriter{w}
	})
	return c.cutOff(w, r, err)
}

func (c clusterRoutes) restore(w *response, r *request) error {
	defer drain(w, r)()
	secret, err := secretOf(r)
	if err != nil {
		return err
	}
	done, err := c.cfg.Backups.Restore(r.Context(), r.Body, swarm.Restoration{
		Passphrase: secret.Passphrase, UnlockKey: secret.UnlockKey, Force: r.query.bool("force"),
		ListenAddr: r.query.get("listenAddr"), AdvertiseAddr: r.query.get("advertiseAddr"), DataPathAddr: r.query.get("dataPathAddr"),
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, done)
}
