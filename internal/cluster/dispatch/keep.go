package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// Format is that of the file in which a node's view is kept (docs/formats.md).
const Format = 1

// keptView is a node's view as it is kept: without secrets.
type keptView struct {
	Format   int
	Node     string
	Term     uint64
	Managers []Manager `json:",omitempty"`
	Barred   []string  `json:",omitempty"`
	Whole    bool      `json:",omitempty"`
	Objects  []Object  `json:",omitempty"`
}

// keeping is the time between a change and its place in the file, in which others come.
const keeping = time.Second

// keep writes the file when it has to, until ctx ends.
func (r *Remote) keep(ctx context.Context) {
	for {
		select {
		case <-r.dirty:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(keeping):
		case <-ctx.Done():
			r.soil() // Close writes it
			return
		}
		if err := r.save(); err != nil {
			r.log.Error("what this node knows of the cluster cannot be kept: trying again", "error", err)
			r.soil()
		}
	}
}

func (r *Remote) save() error {
	if r.cfg.Path == "" {
		return nil
	}
	r.mu.Lock()
	k := keptView{Format: Format, Node: r.cfg.Node, Term: r.term, Managers: r.managers, Barred: slices.Sorted(maps.Keys(r.barred)), Whole: r.whole}
	v := r.state.View()
	for _, w := range store.Writes(v) {
		if w.Kind != cluster.KindSecret {
			k.Objects = append(k.Objects, Object{w.Kind, r.prints[Ref{w.Kind, w.ID}], w.Raw})
		}
	}
	r.mu.Unlock()
	raw, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return atomicfile.Write(r.cfg.Path, raw, 0o600, atomicfile.Options{Sync: true})
}

// load reads the file. FailedPrecondition when it is of a later format.
func (r *Remote) load() error {
	if r.cfg.Path == "" {
		return nil
	}
	raw, err := os.ReadFile(r.cfg.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	k, writes, err := parseKept(raw)
	switch {
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("%s: %w", r.cfg.Path, err)
	case err != nil:
		r.log.Warn("what this node knew of the cluster cannot be read: a manager will tell it anew", "file", r.cfg.Path, "error", err)
		return nil
	case k.Node != r.cfg.Node:
		return nil // it was another one then
	}
	if err := r.state.Fill(1, writes); err != nil {
		return err
	}
	for i, w := range writes {
		r.prints[Ref{w.Kind, w.ID}] = k.Objects[i].Print
	}
	if r.term = k.Term; len(k.Managers) > 0 {
		r.managers = k.Managers
	}
	for _, n := range k.Barred {
		r.barred[n] = true
	}
	if r.whole = k.Whole; r.whole {
		close(r.ready)
	}
	return nil
}

// parseKept reads a kept view. FailedPrecondition when it is of a later format, else
// InvalidArgument.
func parseKept(raw []byte) (keptView, []store.Write, error) {
	var k keptView
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&k); err != nil {
		return k, nil, fmt.Errorf("kept view: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if k.Format > Format {
		return k, nil, fmt.Errorf("kept view: its format is %d, this version of Escale knows %d: %w", k.Format, Format, errdefs.ErrFailedPrecondition)
	}
	seen := map[Ref]bool{}
	var out []store.Write
	for _, o := range k.Objects {
		ref, err := check(o)
		if err == nil && (seen[ref] || o.Print == 0) {
			err = fmt.Errorf("kept view: %s: %w", ref, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return k, nil, err
		}
		seen[ref] = true
		out = append(out, store.Write{Kind: ref.Kind, ID: ref.ID, Raw: o.Raw})
	}
	return k, out, nil
}
