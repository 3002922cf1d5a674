package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Carry carries objects over into a new cluster's store, as they are, with their revisions:
// from the store of a single host, or from a backup. from names where they come from.
// It may be killed at any instant and called again: until all is there, Open finds no store;
// when all was carried over already, nothing is done. Kinds: AlreadyExists when the store
// has objects of its own; Unavailable.
func Carry(ctx context.Context, cfg Config, from string, v store.View) error {
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	client, err := connect(cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	c := carrying{keys{prefix: cfg.Prefix, seal: cfg.Seal}, client, from, v}
	for {
		err := c.all(ctx)
		if err == nil || ctx.Err() != nil || !errdefs.IsUnavailable(err) {
			if err != nil {
				return fmt.Errorf("carrying objects over: %w", err)
			}
			return nil
		}
		select { // whatever was done is found out, and done again
		case <-time.After(again):
		case <-ctx.Done():
			return fmt.Errorf("carrying objects over: %w", err)
		}
	}
}

// carrying is one attempt after the other to carry objects over.
type carrying struct {
	keys   keys
	client *clientv3.Client
	from   string
	v      store.View
}

// all carries all objects over, from the beginning.
func (c carrying) all(ctx context.Context) error {
	got, err := c.client.Get(ctx, c.keys.head())
	if err != nil {
		return kindOf(err)
	}
	at := int64(0)
	if len(got.Kvs) > 0 {
		h, err := parseHead(got.Kvs[0].Value)
		switch {
		case err != nil:
			return err
		case h.Carried == c.from && h.Carrying == "":
			return nil
		case h.Carrying == "":
			return fmt.Errorf("the cluster's store has objects of its own: %w", errdefs.ErrAlreadyExists)
		}
		at = got.Kvs[0].ModRevision
	}
	// What an attempt has left is taken away first: the objects may be others by now.
	under := head{Format: store.Format, Carrying: c.from}
	if at, err = c.step(ctx, at, under, clientv3.OpDelete(c.keys.objects(), clientv3.WithPrefix())); err != nil {
		return err
	}
	var ops []clientv3.Op
	size := 0
	for _, w := range store.Writes(c.v) {
		ops = append(ops, clientv3.OpPut(c.keys.object(name(w)), c.keys.value(w)))
		if size += len(w.Raw); len(ops) == store.MaxChanges || size > maxBytes {
			if at, err = c.step(ctx, at, under, ops...); err != nil {
				return err
			}
			ops, size = nil, 0
		}
	}
	_, err = c.step(ctx, at, head{Format: store.Format, Revision: c.v.Revision(), Carried: c.from}, ops...)
	return err
}

// step writes some objects and the head, if that is as it was left.
func (c carrying) step(ctx context.Context, at int64, h head, ops ...clientv3.Op) (int64, error) {
	raw, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, defaultPatience)
	defer cancel()
	r, err := c.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(c.keys.head()), "=", at)).Then(append(ops, clientv3.OpPut(c.keys.head(), string(raw)))...).Commit()
	switch {
	case err == rpctypes.ErrNoSpace || err == nil && !r.Succeeded:
		return 0, fmt.Errorf("somebody else writes, or there is no place: %w", errdefs.ErrUnavailable)
	case err != nil:
		return 0, kindOf(err)
	}
	return r.Header.Revision, nil
}
