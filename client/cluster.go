package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/moby/moby/api/types/volume"
)

// Renewed is what became of a secret or config that got other content.
type Renewed struct {
	ID       string   // of the one that has the name now
	Services []string // names of those that exchange their tasks for ones that have it
}

// SecretRenew gives a secret other content under its name. Services that use it begin to
// exchange their tasks, as their update policies say; it does not wait for that.
func (c *Client) SecretRenew(ctx context.Context, name string, data []byte) (Renewed, error) {
	return c.renew(ctx, "/escale/secrets/"+name+"/renew", data)
}

// ConfigRenew does for a config what SecretRenew does for a secret.
func (c *Client) ConfigRenew(ctx context.Context, name string, data []byte) (Renewed, error) {
	return c.renew(ctx, "/escale/configs/"+name+"/renew", data)
}

func (c *Client) renew(ctx context.Context, endpoint string, data []byte) (Renewed, error) {
	return ask[Renewed](ctx, c, http.MethodPost, endpoint, nil, map[string][]byte{"Data": data})
}

// ClusterNode is a node of a cluster.
type ClusterNode struct{ ID, Name string }

// VolumeMoveOptions say what is to be moved, and where.
type VolumeMoveOptions struct {
	Volumes []string
	To      string // name or id of a node
	From    string // the same; "": the only one that has them
	Keep    bool   // what the first node has is not removed
}

// VolumeMove is a move of volumes from one node to another.
type VolumeMove struct {
	ID       string
	Volumes  []string
	From, To ClusterNode
	Keep     bool
	Phase    string   // "" (it waits for its turn), holding, copying, moved, dropping, done, undoing, undone
	Message  string   // what it waits for, or why it is undone
	Come     []string // the volumes of which all is there
	Bytes    int64    // of the next one that have come
	Total    int64    // that it has; 0: not known
	Over     bool
}

// VolumeMoveBegin begins to move volumes, with the tasks that have them, and gives the move's id. It does
// not wait for the end.
func (c *Client) VolumeMoveBegin(ctx context.Context, o VolumeMoveOptions) (string, error) {
	made, err := ask[struct{ ID string }](ctx, c, http.MethodPost, "/escale/moves", nil, o)
	return made.ID, err
}

// VolumeMove tells of a move, by its id or, as long as it is not over, by a volume of it.
func (c *Client) VolumeMove(ctx context.Context, ref string) (VolumeMove, error) {
	return ask[VolumeMove](ctx, c, http.MethodGet, "/escale/moves/"+url.PathEscape(ref), nil, nil)
}

// VolumeMoves lists the moves of the last hour, the oldest first.
func (c *Client) VolumeMoves(ctx context.Context) ([]VolumeMove, error) {
	return ask[[]VolumeMove](ctx, c, http.MethodGet, "/escale/moves", nil, nil)
}

// VolumeMoveCancel has a move undone, by its id or a volume of it. It does not wait for that.
func (c *Client) VolumeMoveCancel(ctx context.Context, ref string) error {
	return c.tell(ctx, http.MethodDelete, "/escale/moves/"+url.PathEscape(ref), nil)
}

// ClusterVolume is a volume on a node.
type ClusterVolume struct {
	volume.Volume
	Node ClusterNode
}

// ClusterVolumes lists the volumes of all nodes, by name; missing are nodes that were not to be asked.
func (c *Client) ClusterVolumes(ctx context.Context) (list []ClusterVolume, missing []string, err error) {
	got, err := ask[struct {
		Volumes []struct {
			Name, Driver, Scope string
			Labels, Options     map[string]string
			CreatedAt           time.Time
			Node                ClusterNode
		}
		Missing []string
	}](ctx, c, http.MethodGet, "/escale/volumes", nil, nil)
	for _, v := range got.Volumes {
		list = append(list, ClusterVolume{volume.Volume{
			Name: v.Name, Driver: v.Driver, Scope: v.Scope, Labels: v.Labels, Options: v.Options, CreatedAt: v.CreatedAt.Format(time.RFC3339),
		}, v.Node})
	}
	return list, got.Missing, err
}
