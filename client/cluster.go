package client

import (
	"context"
	"encoding/json"
	"net/http"
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

func (c *Client) renew(ctx context.Context, endpoint string, data []byte) (out Renewed, err error) {
	res, err := c.Do(ctx, http.MethodPost, endpoint, nil, map[string][]byte{"Data": data})
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	return out, json.NewDecoder(res.Body).Decode(&out)
}
