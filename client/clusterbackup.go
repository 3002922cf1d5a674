package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// ClusterSecret is what a backup of a cluster is sealed with: one of the two.
type ClusterSecret struct {
	Passphrase string `json:",omitempty"`
	UnlockKey  string `json:",omitempty"` // that managers of the cluster had when it was made
}

func (s ClusterSecret) header() (string, error) {
	raw, err := json.Marshal(s)
	return base64.URLEncoding.EncodeToString(raw), err
}

// secretHeader is where the engine looks for it.
const secretHeader = "Escale-Backup-Secret"

// ClusterBackup is all that a cluster is, sealed, which the caller closes. Read to its end without
// an error, it is whole.
type ClusterBackup struct {
	io.ReadCloser
	Stale bool // most managers did not answer: it is what the one that was asked knew
}

// ClusterBackup asks a manager for all that its cluster is, as ClusterRestore takes it. Without a
// passphrase it is sealed with the key that managers are unlocked with; where they are not
// locked, that is refused.
func (c *Client) ClusterBackup(ctx context.Context, passphrase string) (*ClusterBackup, error) {
	h, err := ClusterSecret{Passphrase: passphrase}.header()
	if err != nil {
		return nil, err
	}
	res, err := c.sendWith(ctx, http.MethodGet, "/escale/cluster/backup", nil, nil, "", http.Header{secretHeader: {h}})
	if err != nil {
		return nil, err
	}
	return &ClusterBackup{res.Body, res.Header.Get("Escale-Backup-Stale") == "true"}, nil
}

// ClusterRestoreOptions say how a cluster is begun anew.
type ClusterRestoreOptions struct {
	Secret        ClusterSecret
	Force         bool   // a manager is set back to what was saved
	ListenAddr    string // ADDRESS|INTERFACE[:PORT]; "": 0.0.0.0:2377
	AdvertiseAddr string // that others are told; "": the host's, if it has but one
	DataPathAddr  string // for what containers send each other; "": that of AdvertiseAddr
}

// ClusterRestored is what became of it.
type ClusterRestored struct {
	Cluster, Node string // ids
	Made          time.Time
	Revision      uint64
	Objects       int
}

// ClusterRestore begins a cluster anew from a backup, with the engine's host as its only manager:
// with an error all is as it was.
func (c *Client) ClusterRestore(ctx context.Context, backup io.Reader, o ClusterRestoreOptions) (done ClusterRestored, err error) {
	h, err := o.Secret.header()
	if err != nil {
		return done, err
	}
	q := url.Values{}
	setTrue(q, "force", o.Force)
	for name, value := range map[string]string{"listenAddr": o.ListenAddr, "advertiseAddr": o.AdvertiseAddr, "dataPathAddr": o.DataPathAddr} {
		if value != "" {
			q.Set(name, value)
		}
	}
	res, err := c.sendWith(ctx, http.MethodPost, "/escale/cluster/restore", q, backup, "application/octet-stream", http.Header{secretHeader: {h}})
	if err != nil {
		return done, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&done); err != nil {
		return done, fmt.Errorf("the engine's answer: %w", err)
	}
	return done, nil
}
