package container

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/internal/container/archive"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/image/changes"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
)

// Commit says what image is made of a container.
type Commit struct {
	Ref             string // name to give it; empty: none
	Author, Comment string
	NoPause         bool              // let the processes run meanwhile
	Config          *container.Config // what it has is taken instead of the container's; nil: it is the container's
	Changes         []string          // Dockerfile instructions, on Config
}

// frozenFile, in the run directory, tells a later engine that a run was paused
// for the while only: by a commit, or a copy of a volume.
const frozenFile = "paused-for-commit"

// Commit makes an image of what a container is now: its image, a layer of what
// it has written, and its configuration. What is mounted in it stays out. A
// running container is paused meanwhile. It blocks until the image is stored;
// when ctx ends first, or with an error, nothing is left. Returns the image's id.
func (f Files) Commit(ctx context.Context, ref string, o Commit) (string, error) {
	e, err := f.m.store.find(ref)
	if err != nil {
		return "", err
	}
	asked := o.Config
	if asked == nil {
		asked = e.view().Config // which does not change
	}
	config := imageConfig(asked)
	if err := changes.Apply(&config, o.Changes); err != nil {
		return "", err
	}
	if o.Ref != "" {
		if err := image.ParseCommitName(o.Ref); err != nil {
			return "", err
		}
	}
	if err := e.committing.lock(ctx); err != nil {
		return "", err
	}
	defer e.committing.unlock()
	if err := e.op.lock(ctx); err != nil {
		return "", err
	}
	if e.gone() { // while this waited
		e.op.unlock()
		return "", errNoSuch(ref)
	}
	v := e.view()
	done, err := f.steady(ctx, e, &v, o.NoPause)
	if err != nil {
		e.op.unlock()
		return "", err
	}
	defer done()
	ctx, end := e.cutByRemoval(ctx)
	defer end()
	inherit(&config, imageConfig(v.Config))
	img, err := f.m.cfg.Images.Commit(ctx, image.CommitOptions{
		Parent: v.ImageID, Ref: o.Ref, Config: config, Author: o.Author, Comment: o.Comment, CreatedBy: strings.Join(v.Config.Cmd, " "),
		Diff: func(ctx context.Context, w io.Writer) (int, error) { return f.diff(ctx, &v, w) },
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", err
	}
	f.m.publish(e, apievents.ActionCommit, map[string]string{"comment": o.Comment, "imageID": img.ID, "imageRef": o.Ref})
	return img.ID, nil
}

// steady makes that a container, whose op lock is held, changes nothing by itself.
// What runs is paused, and others may go on with it: the lock is given back here.
// What does not run stays locked. done ends that, the lock included; with an
// error the lock is still held.
func (f Files) steady(ctx context.Context, e *entry, v *View, noPause bool) (done func(), err error) {
	switch st := v.State; {
	case st.Status == Removing, st.Status == Dead:
		return nil, kindf(errConflict, "You cannot commit container %s which is %s", e.id, st.Status)
	case !st.Running():
		return e.op.unlock, f.m.waitReaped(ctx, e)
	case st.Status == Running && !noPause:
		thaw, err := f.pauseFor(e, st.Generation)
		if err != nil {
			return nil, err
		}
		e.op.unlock()
		return func() {
			if e.op.lock(f.m.ctx) == nil {
				defer e.op.unlock()
			} // the engine ends: then nobody else does anything either
			thaw()
		}, nil
	}
	e.op.unlock()
	return func() {}, nil
}

// errRemovedAmid is how a commit ends whose container is removed.
var errRemovedAmid = kindf(errConflict, "the container was removed while an image was made of it")

// cutByRemoval gives a context that a removal of the container ends, one by force
// as soon as it is asked for: what is read meanwhile is being deleted.
func (e *entry) cutByRemoval(ctx context.Context) (_ context.Context, end func()) {
	ctx, cut := context.WithCancelCause(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed || e.rec.State.Status == Removing {
		cut(errRemovedAmid)
	}
	e.uncommit = cut
	_, urgent := e.op.signals()
	go func() {
		select {
		case <-urgent:
			cut(errRemovedAmid)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.uncommit = nil
		cut(nil)
	}
}

// diff writes what the container has changed as a layer.
func (f Files) diff(ctx context.Context, v *View, w io.Writer) (int, error) {
	upper, lowers, err := f.m.cfg.Rootfs.Layers(ctx, string(v.ID))
	if err != nil {
		return 0, err
	}
	n, err := archive.Diff(ctx, upper, lowers, placed(v.Mounts), w)
	if ctx.Err() != nil { // by a removal, perhaps: what was read may have been half gone
		return 0, ctx.Err()
	}
	if errors.Is(err, fs.ErrInvalid) {
		err = kindf(errInvalid, "%s", err)
	}
	return n, err
}

// pauseFor pauses a running container, with a note of it for a later engine; e's
// op lock is held. What it returns undoes that.
func (f Files) pauseFor(e *entry, generation uint64) (thaw func(), err error) {
	note := filepath.Join(f.m.runDir(e.id, generation), frozenFile)
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		return nil, err
	}
	thaw = func() {
		_, gone := os.Stat(note) // it was killed, or somebody let it go on
		if gone == nil && e.state().Status == Paused {
			if err := f.m.thaw(e); err != nil {
				f.m.log.Error("resuming what was paused for the while", "container", e.id.Short(), "error", err)
				return // the note lets the next engine do it
			}
		}
		os.Remove(note)
	}
	if err := f.m.freeze(e); err != nil {
		thaw()
		if !e.state().Running() {
			return func() {}, nil // it has ended: nothing writes any more
		}
		return nil, err
	}
	return thaw, nil
}

// resume lets a container go on that an engine had paused for a commit when it
// was killed.
func (m recovery) resume(e *entry) {
	st := e.state()
	note := filepath.Join(m.runDir(e.id, st.Generation), frozenFile)
	if _, err := os.Stat(note); err != nil {
		return
	}
	// Frozen or not, and recorded or not: both are made true.
	v := e.view()
	err := m.cfg.Freezer.Thaw(m.cgroupPath(&v.Record))
	if err == nil && st.Status == Paused {
		err = m.thaw(e)
	}
	if err != nil {
		m.log.Error("resuming after a commit that was cut off", "container", e.id.Short(), "error", err)
		return
	}
	os.Remove(note)
}

// imageConfig is as much of a container's configuration as images have.
func imageConfig(c *container.Config) changes.Config {
	var out changes.Config
	out.User, out.WorkingDir, out.StopSignal = c.User, c.WorkingDir, c.StopSignal
	out.Env, out.Entrypoint, out.Cmd = slices.Clone(c.Env), slices.Clone(c.Entrypoint), slices.Clone(c.Cmd)
	out.Labels, out.Volumes = cloneMap(c.Labels), cloneMap(c.Volumes)
	out.ExposedPorts = portNames(c.ExposedPorts)
	out.OnBuild, out.Shell = slices.Clone(c.OnBuild), slices.Clone(c.Shell)
	if h := c.Healthcheck; h != nil {
		copied := *h
		out.Healthcheck = &copied
	}
	return out
}

func portNames(ports network.PortSet) map[string]struct{} {
	if ports == nil {
		return nil
	}
	out := make(map[string]struct{}, len(ports))
	for p := range ports {
		out[p.String()] = struct{}{}
	}
	return out
}

// inherit fills up what the client left open with what the container has.
func inherit(c *changes.Config, from changes.Config) {
	if c.User == "" {
		c.User = from.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = from.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = from.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = from.Shell
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = from.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = from.Entrypoint
		}
	}
	c.Env = append(c.Env, lacking(from.Env, c.Env)...)
	c.Labels, c.Volumes, c.ExposedPorts = union(c.Labels, from.Labels), union(c.Volumes, from.Volumes), union(c.ExposedPorts, from.ExposedPorts)
	if c.Healthcheck == nil {
		c.Healthcheck = from.Healthcheck
	}
}

// lacking gives those of env whose names are not in other.
func lacking(env, other []string) []string {
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(other, func(o string) bool { n, _, _ := strings.Cut(o, "="); return n == name }) {
			out = append(out, e)
		}
	}
	return out
}

// union adds to m what it has not.
func union[V any](m, from map[string]V) map[string]V {
	if m == nil {
		return from
	}
	for k, v := range from {
		if _, ok := m[k]; !ok {
			m[k] = v
		}
	}
	return m
}
