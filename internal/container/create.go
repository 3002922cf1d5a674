package container

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
)

// Create makes a container: its record, its root file system and its volumes.
// Killed anywhere before the record is on disk, the next Open collects the rest.
func (m *Manager) Create(ctx context.Context, c Create) (CreateResult, error) {
	if c.Config == nil {
		return CreateResult{}, kindf(errInvalid, "config cannot be empty in order to create a container")
	}
	if c.HostConfig == nil {
		c.HostConfig = &container.HostConfig{}
	}
	img, err := m.cfg.Images.Get(ctx, cmp.Or(c.ImageID, c.Config.Image))
	if err != nil {
		return CreateResult{}, err
	}
	if err := fits(img, c.Config.Image, c.Platform); err != nil {
		return CreateResult{}, err
	}
	rec := Record{Format: RecordFormat, ID: newID(), Created: now(), ImageID: img.ID, Platform: "linux", Owner: c.Owner}
	rec.Config, rec.HostConfig = copyConfig(c.Config), copyHostConfig(c.HostConfig)
	if c.Networking != nil {
		rec.Networking = c.Networking.EndpointsConfig
	}
	rec.State.Status = Created
	mismatch, err := checkPlatform(c.Config.Image, c.Platform, img)
	if err != nil {
		return CreateResult{}, err
	}
	warnings, err := m.creator.complete(&rec, img)
	if err != nil {
		return CreateResult{}, notAboutImage(err)
	}
	warnings = append(warnings, mismatch...)
	if slices.ContainsFunc(rec.HostConfig.Mounts, func(mt mount.Mount) bool { return mt.Type == mount.TypeImage }) {
		warnings = append(warnings, "Image mount is an experimental feature")
	}
	if rec.Name, err = m.creator.chooseName(c.Name, rec.ID); err != nil {
		return CreateResult{}, err
	}
	e, err := m.creator.build(ctx, rec, c.TakesOver)
	if err != nil {
		m.store.release(rec.Name, rec.ID)
		return CreateResult{}, notAboutImage(err)
	}
	m.publish(e, apievents.ActionCreate, nil)
	return CreateResult{ID: rec.ID, Warnings: warnings}, nil
}

// fits refuses an image for another platform than the one asked for, which may be
// "". It is not found then, so that clients pull the right one.
func fits(img image.Image, ref, wanted string) error {
	if wanted == "" {
		return nil
	}
	p, err := platforms.Parse(wanted)
	if err != nil {
		return kindf(errInvalid, "%s", err)
	}
	has := platforms.Normalize(img.Config.Platform)
	// Older builders left the variant out.
	if img.Config.OS == "" || platforms.Only(p).Match(has) || has.Variant == "" && has.OS == p.OS && has.Architecture == p.Architecture {
		return nil
	}
	return kindf(errNotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		ref, platforms.FormatAll(has), platforms.FormatAll(p))
}

func (m creator) chooseName(name string, id ID) (string, error) {
	if name == "" {
		return m.inventName(id)
	}
	name, err := validName(name)
	if err != nil {
		return "", err
	}
	return name, m.store.reserve(name, id)
}

// notAboutImage turns NotFound into InvalidArgument with the same words: clients
// take NotFound of a create for a missing image, and pull it.
func notAboutImage(err error) error {
	if errdefs.IsNotFound(err) {
		return kindf(errInvalid, "%s", err)
	}
	return err
}

// build makes what a container has on disk, its record last; what was made is
// undone when a later step fails.
func (m creator) build(ctx context.Context, rec Record, before map[string]string) (_ *entry, err error) {
	var undo undoStack
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	dir := m.store.path(rec.ID)
	if err := os.Mkdir(dir, 0o710); err != nil {
		return nil, err
	}
	undo.add(func() { os.RemoveAll(dir) })
	if err := m.cfg.Rootfs.Prepare(ctx, string(rec.ID), rec.ImageID); err != nil {
		return nil, err
	}
	undo.add(func() { m.cfg.Rootfs.Remove(m.ctx, string(rec.ID)) })
	if err := m.mounts.resolve(ctx, &rec, before); err != nil {
		m.mounts.release(&rec)
		m.mounts.removeAnonymous(&rec)
		m.mounts.dropImages(m.ctx, &rec)
		return nil, err
	}
	undo.add(func() {
		m.mounts.release(&rec)
		m.mounts.removeAnonymous(&rec)
		m.mounts.dropImages(m.ctx, &rec)
	})
	if err := m.equip(ctx, &rec); err != nil {
		return nil, err
	}
	e := newEntry(rec)
	if rec.passing() {
		if err := m.store.markPassing(rec.ID); err != nil {
			return nil, err
		}
	}
	if err := m.store.save(&e.rec, !rec.passing()); err != nil {
		return nil, err
	}
	if err := m.store.settled(rec.ID); err != nil {
		m.log.Warn("note of volumes that were about to be made", "container", rec.ID.Short(), "error", err)
	}
	m.cfg.Networks.Keep(string(rec.ID), rec.Networking) // before it can be found, and removed
	m.store.add(e)
	return e, nil
}

// creator makes containers out of what clients ask.
type creator struct {
	*core
	mounts mounts
}

// complete fills in what the client left open, from the image and the engine's
// defaults, and refuses what cannot be.
func (m creator) complete(rec *Record, img image.Image) ([]string, error) {
	c, h := rec.Config, rec.HostConfig
	if err := checkShared(c, h); err != nil {
		return nil, err
	}
	mergeImage(c, &img.Config)
	if err := errors.Join(checkHealth(c.Healthcheck), checkHealLabel(c)); err != nil {
		return nil, err
	}
	argv := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 || (len(argv) == 1 && argv[0] == "") {
		return nil, kindf(errInvalid, "no command specified")
	}
	rec.Path, rec.Args = argv[0], argv[1:]
	warnings, err := m.cfg.Specs.Validate(h, c)
	if err != nil {
		return nil, err
	}
	if h.UTSMode.IsHost() && c.Hostname != "" {
		return nil, kindf(errInvalid, "conflicting options: hostname and the UTS mode")
	}
	if err := m.hostDefaults(rec); err != nil {
		return nil, err
	}
	if h.NetworkMode.IsHost() || h.UTSMode.IsHost() {
		if c.Hostname == "" {
			c.Hostname, _ = os.Hostname()
		}
	}
	if c.Hostname == "" {
		c.Hostname = rec.ID.Short()
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if h.LogConfig.Type == "json-file" {
		rec.LogPath = m.logPath(rec.ID)
	}
	return warnings, nil
}

// hostDefaults completes the host configuration by Docker's rules.
func (m creator) hostDefaults(rec *Record) error {
	h, d := rec.HostConfig, m.defaults()
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = apinetwork.NetworkBridge
	}
	if err := m.checkNetwork(rec); err != nil {
		return err
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return kindf(errInvalid, "%s", err)
	}
	if len(h.StorageOpt) > 0 {
		return kindf(errInvalid, "--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return kindf(errInvalid, "can't create 'AutoRemove' container with restart policy")
	}
	if err := m.logDefaults(h); err != nil {
		return err
	}
	m.cfg.Specs.Complete(h)
	if h.Runtime == "" {
		h.Runtime = d.Runtime
	}
	if _, ok := d.Runtimes[h.Runtime]; !ok {
		return kindf(errInvalid, "unknown or invalid runtime name: %s", h.Runtime)
	}
	if h.PortBindings == nil {
		h.PortBindings = apinetwork.PortMap{}
	}
	return nil
}

// checkShared refuses what a container asks for itself on the network of another
// that has it already, in Docker's words. c is as the client sent it: ports that
// the image names are no conflict.
func checkShared(c *container.Config, h *container.HostConfig) error {
	switch mode := h.NetworkMode; {
	case !mode.IsContainer():
		return nil
	case mode.ConnectedContainer() == "":
		return kindf(errInvalid, "invalid network mode: invalid container format container:<name|id>")
	case c.Hostname != "":
		return kindf(errInvalid, "conflicting options: hostname and the network mode")
	case len(h.Links) > 0:
		return kindf(errInvalid, "conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case len(h.DNS) > 0:
		return kindf(errInvalid, "conflicting options: dns and the network mode")
	case len(h.ExtraHosts) > 0:
		return kindf(errInvalid, "conflicting options: custom host-to-IP mapping and the network mode")
	case len(h.PortBindings) > 0 || h.PublishAllPorts:
		return kindf(errInvalid, "conflicting options: port publishing and the container type network mode")
	case len(c.ExposedPorts) > 0:
		return kindf(errInvalid, "conflicting options: port exposing and the container type network mode")
	}
	return nil
}

// checkNetwork refuses network modes that cannot be, in Docker's words. Networks that
// are not there are missed by the start: they may be made until then.
func (m creator) checkNetwork(rec *Record) error {
	h, c := rec.HostConfig, rec.Config
	mode := h.NetworkMode
	switch {
	case mode.IsContainer():
		other, err := m.store.find(mode.ConnectedContainer())
		if err != nil {
			return err
		}
		h.NetworkMode = container.NetworkMode("container:" + string(other.id))
		v := other.view()
		c.Hostname, c.Domainname = v.Config.Hostname, v.Config.Domainname
	case mode.IsHost():
	default:
		nameDefault(rec.Networking, string(mode))
		for _, asked := range []map[string]*apinetwork.EndpointSettings{{string(mode): nil}, wantedNetworks(rec)} {
			if err := m.cfg.Networks.Validate(network.Request{Networks: asked, Later: true}); err != nil {
				return err
			}
		}
		if err := m.nameNetworks(rec); err != nil {
			return err
		}
	}
	if err := m.checkLinks(rec); err != nil {
		return err
	}
	return nil
}

// nameDefault gives what a client asked of "the default network" that network's name.
func nameDefault(asked map[string]*apinetwork.EndpointSettings, name string) {
	if es, ok := asked[apinetwork.NetworkDefault]; ok {
		delete(asked, apinetwork.NetworkDefault)
		if asked[name] == nil {
			asked[name] = es
		}
	}
}

// wantedNetworks are the networks a container joins, with what it asked of each.
func wantedNetworks(rec *Record) map[string]*apinetwork.EndpointSettings {
	if rec.NoNetworks {
		return map[string]*apinetwork.EndpointSettings{}
	}
	if _, ok := rec.Networking[apinetwork.NetworkDefault]; len(rec.Networking) == 0 || ok {
		return map[string]*apinetwork.EndpointSettings{string(rec.HostConfig.NetworkMode): nil}
	}
	return rec.Networking
}
