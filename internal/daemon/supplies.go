package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/cluster/supply"
	"escale.dev/escale/internal/image"
	enginenet "escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/errtext"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	"github.com/xhit/go-str2duration/v2"
)

// taskSupplies is what the engine has for the containers of tasks. Its parts are the
// ones that the API has, so that the same rules hold.
type taskSupplies struct {
	images interface {
		Get(ctx context.Context, ref string) (image.Image, error)
	}
	registries interface {
		Pull(ctx context.Context, ref reference.Named, o engine.PullOptions) error
	}
	// peers are the other nodes; nil: there are none.
	peers interface {
		Lookup(ctx context.Context, name reference.NamedTagged) (id string, err error)
		Fetch(ctx context.Context, name reference.Named, w image.Wanted, platform string) error
	}
	networks engine.Networks
	spans    interface {
		Find(ctx context.Context, ref string) (enginenet.Spanned, error)
		Here(name string) (enginenet.Info, error) // a network that this engine has
		Span(ctx context.Context, n enginenet.Spanned) error
	} // nil: there are none
	volumes engine.Volumes
	files   taskFiles
	making  *sync.Mutex // of a network: tasks of one app want theirs all at once
	log     *slog.Logger
}

var (
	_ executor.Supplies = taskSupplies{}
	_ supply.Engine     = taskSupplies{}
)

func newTaskSupplies(d *Daemon) taskSupplies {
	return taskSupplies{
		images: d.images, registries: registries{d.registry, d.images, d.events}, peers: d.peers, networks: d.networks, volumes: d.volumes, spans: ownSpans{d.spans, d.networks},
		files: d.taskFiles(), making: new(sync.Mutex), log: d.log.With("component", "tasks"),
	}
}

// ownSpans are the cluster's networks, and who makes them here.
type ownSpans struct {
	*spans
	made *enginenet.Manager
}

// Here finds a network that this engine has.
func (s ownSpans) Here(name string) (enginenet.Info, error) { return s.made.Find(name) }

// Span makes one, unless it is there.
func (s ownSpans) Span(ctx context.Context, n enginenet.Spanned) error { return s.made.Span(ctx, n) }

// Image implements executor.Supplies. The image that the name stood for when it was asked
// for is taken from here, or from another node; only when it is nowhere the name has to do.
func (s taskSupplies) Image(ctx context.Context, w executor.Image) (string, error) {
	if w.ID == "" {
		return "", s.named(ctx, w)
	}
	if _, err := s.images.Get(ctx, w.ID); err == nil {
		return w.ID, nil
	}
	name, err := reference.ParseDockerRef(w.Name)
	if err == nil && s.peers != nil {
		if err = s.peers.Fetch(ctx, name, image.Wanted{ID: digest.Digest(w.ID)}, ""); err == nil {
			return w.ID, nil
		}
		if ctx.Err() != nil {
			return "", err
		}
		if !errdefs.IsNotFound(err) {
			s.log.Warn("image cannot be had from other nodes", "image", w.Name, "id", w.ID, "error", err)
		}
	}
	return "", s.named(ctx, w) // it may have gone: the name is better than nothing
}

// named sees to an image by its name. The policies are compose's: "" and if_not_present are
// missing; build is of images that were built before, and never pulled; daily, weekly and
// every_<duration> pull what was pulled so long ago. What is not here other nodes may have;
// they are asked before a registry is, unless it is to be pulled in any case. An image that is there serves when a
// newer one cannot be had.
func (s taskSupplies) named(ctx context.Context, w executor.Image) error {
	img, err := s.images.Get(ctx, w.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	there := err == nil && isFor(img, w.Platform)
	wanted, bad := pullWanted(w.Policy, there, img.LastTagged, time.Now())
	if bad != nil || there && !wanted {
		return bad
	}
	parsed, bad := reference.ParseAnyReference(w.Name)
	name, ok := parsed.(reference.Named)
	if bad != nil || !ok { // an id: there is nothing to pull
		return err
	}
	name = reference.TagNameOnly(name)
	if !there && w.Policy != "always" && s.fetch(ctx, name, w.Platform) {
		return nil
	}
	if !wanted {
		return err
	}
	err = s.pull(ctx, name, w)
	switch {
	case err == nil || ctx.Err() != nil:
	case there:
		s.log.Warn("image cannot be pulled: the one that is there serves", "image", w.Name, "error", err)
		return nil
	case w.Policy == "always" && s.fetch(ctx, name, w.Platform):
		s.log.Warn("image cannot be pulled: the one of another node serves", "image", w.Name, "error", err)
		return nil
	}
	return err
}

// fetch brings what a name means from another node, and tells whether it could.
func (s taskSupplies) fetch(ctx context.Context, name reference.Named, platform string) bool {
	if s.peers == nil {
		return false
	}
	err := s.peers.Fetch(ctx, name, wantedAs(name, platform), platform)
	if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		s.log.Warn("image cannot be had from other nodes", "image", reference.FamiliarString(name), "error", err)
	}
	return err == nil
}

// pull brings what a name means from a registry.
func (s taskSupplies) pull(ctx context.Context, name reference.Named, w executor.Image) error {
	o := engine.PullOptions{Platform: w.Platform, Progress: func(image.Progress) {}, Done: func(string, image.Pulled) {}}
	if w.Auth != "" {
		login, err := authconfig.Decode(w.Auth)
		if err != nil {
			return fmt.Errorf("image %s: login: %w: %w", w.Name, err, errdefs.ErrInvalidArgument)
		}
		o.Auth = *login
	}
	return s.registries.Pull(ctx, name, o)
}

// isFor tells whether an image is for a platform; "" is any.
func isFor(img image.Image, platform string) bool {
	if platform == "" || img.Config.OS == "" {
		return true
	}
	p, err := platforms.Parse(platform)
	has := platforms.Normalize(img.Config.Platform)
	return err == nil && (platforms.Only(p).Match(has) || has.Variant == "" && has.OS == p.OS && has.Architecture == p.Architecture)
}

// pullWanted tells whether a policy wants an image pulled.
func pullWanted(policy string, there bool, tagged, now time.Time) (bool, error) {
	age := time.Duration(0)
	switch policy {
	case "", "missing", "if_not_present":
		return !there, nil
	case "always":
		return true, nil
	case "never", "build":
		return false, nil
	case "daily":
		age = 24 * time.Hour
	case "weekly":
		age = 7 * 24 * time.Hour
	default:
		every, ok := strings.CutPrefix(policy, "every_")
		d, err := str2duration.ParseDuration(every)
		if !ok || err != nil {
			return false, fmt.Errorf("pull policy %q: no such policy: %w", policy, errdefs.ErrInvalidArgument)
		}
		age = d
	}
	return !there || now.Sub(tagged) >= age, nil
}

// The labels by which compose knows what is a project's.
const (
	projectLabel = "com.docker.compose.project"
	networkLabel = "com.docker.compose.network"
)

// Network implements executor.Supplies.
func (s taskSupplies) Network(ctx context.Context, n cluster.NetworkSpec) error {
	s.making.Lock()
	defer s.making.Unlock()
	if spans, err := s.span(ctx, n); spans || err != nil {
		return err
	}
	i, err := s.networks.Find(n.Name)
	switch {
	case err == nil && (n.External || n.Create == nil):
		return nil
	case err == nil:
		if err := isOurs(n, i.Labels); err != nil || !outdated(n, i.Labels) {
			return err
		}
		if err := s.away(ctx, i.ID); err != nil {
			return err
		}
	case !errdefs.IsNotFound(err):
		return err
	case n.External:
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s declared as external, but could not be found", n.Name))
	}
	_, err = s.networks.Create(ctx, networkRequest(n))
	return err
}

// madeLabel is how often a network was made anew, if it was.
const madeLabel = "escale.made"

// outdated tells whether a network is of options that it is to have no more.
func outdated(n cluster.NetworkSpec, has map[string]string) bool {
	made, err := strconv.ParseUint(has[madeLabel], 10, 64)
	return n.Made > 0 && (err != nil || made < n.Made)
}

// away removes a network that another is to take the place of. Unavailable as long as somebody
// is on it.
func (s taskSupplies) away(ctx context.Context, id string) error {
	err := s.networks.Remove(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errdefs.IsPermissionDenied(err): // Docker's kind for one that has endpoints
		return errdefs.ErrUnavailable.WithMessage(errtext.Of(err))
	}
	return err
}

// span makes a network of the cluster's here; false: it is none. One that the app had under the
// name before, of this host or with other options, gives way to it.
func (s taskSupplies) span(ctx context.Context, n cluster.NetworkSpec) (bool, error) {
	if s.spans == nil {
		return false, nil
	}
	want, err := s.spans.Find(ctx, n.Name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	i, err := s.spans.Here(n.Name)
	switch {
	case err == nil && i.ID != want.ID && n.External:
		return false, nil // a name means what is here first
	case err == nil && i.ID != want.ID:
		if err := isOurs(n, i.Labels); err != nil {
			return true, err
		}
		if err := s.away(ctx, i.ID); err != nil {
			return true, err
		}
	case err != nil && !errdefs.IsNotFound(err):
		return true, err
	}
	return true, s.spans.Span(ctx, want)
}

// isOurs refuses a network that another project or person has made, as compose does.
func isOurs(n cluster.NetworkSpec, has map[string]string) error {
	if n.Create == nil {
		return nil
	}
	want := n.Create.Labels
	if p := want[projectLabel]; p != "" && has[projectLabel] != p {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("a network with name %s exists but was not created for project %q.\nSet `external: true` to use an existing network", n.Name, p))
	}
	if l := want[networkLabel]; has[networkLabel] != l {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("network %s was found but has incorrect label %s set to %q (expected: %q)", n.Name, networkLabel, has[networkLabel], l))
	}
	return nil
}

// networkRequest is a request for a network as clients of the API make them.
func networkRequest(n cluster.NetworkSpec) enginenet.Create {
	r := n.Create
	if r == nil {
		r = &apinetwork.CreateRequest{}
	}
	c := enginenet.Create{
		Name: n.Name, Driver: r.Driver, Scope: r.Scope, EnableIPv4: r.EnableIPv4, EnableIPv6: r.EnableIPv6,
		Internal: r.Internal, Attachable: r.Attachable, Ingress: r.Ingress, ConfigOnly: r.ConfigOnly, Options: r.Options, Labels: r.Labels,
	}
	if n.Made > 0 {
		c.Labels = maps.Clone(r.Labels)
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[madeLabel] = strconv.FormatUint(n.Made, 10)
	}
	if r.ConfigFrom != nil {
		c.ConfigFrom = r.ConfigFrom.Network
	}
	if r.IPAM != nil {
		c.IPAM = &enginenet.CreateIPAM{Driver: r.IPAM.Driver, Options: r.IPAM.Options}
		for _, p := range r.IPAM.Config {
			sub := enginenet.CreateSubnet{Aux: map[string]string{}}
			if p.Subnet.IsValid() {
				sub.Subnet = p.Subnet.String()
			}
			if p.IPRange.IsValid() {
				sub.IPRange = p.IPRange.String()
			}
			if p.Gateway.IsValid() {
				sub.Gateway = p.Gateway.String()
			}
			for name, a := range p.AuxAddress {
				sub.Aux[name] = a.String()
			}
			c.IPAM.Config = append(c.IPAM.Config, sub)
		}
	}
	return c
}

// whoIsOn knows what the engine has, and who is on its networks.
type whoIsOn struct{ d *Daemon }

// Node implements apps.Engine.
func (s whoIsOn) Node() string { return s.d.orchestrator.part.Node() }

// Driver implements apps.Engine.
func (s whoIsOn) Driver(network string) string {
	i, err := s.d.networks.Find(network)
	if err != nil || i.Scope == "swarm" {
		return ""
	}
	return i.Driver
}

// Has implements apps.Engine.
func (s whoIsOn) Has(ctx context.Context, volume string) bool {
	_, err := s.d.volumes.Get(ctx, volume)
	return err == nil
}

// Strangers implements apps.Engine.
func (s whoIsOn) Strangers(network, app string) []string {
	i, err := s.d.networks.Inspect(network)
	if err != nil {
		return nil
	}
	var out []string
	for id := range i.Containers {
		v, err := s.d.containers.Get(id)
		if err == nil && (v.Owner == nil || v.Config.Labels[projectLabel] != app) {
			out = append(out, v.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Missing implements apps.Engine.
func (s whoIsOn) Missing(tasks, networks []string) (out []string) {
	process := func(task string) (id string, pid int) {
		v, err := s.d.containers.Kept().Of(task)
		if err != nil || !v.State.Running() {
			return "", 0
		}
		return string(v.ID), v.State.Pid
	}
	for _, name := range networks {
		ids, pids := map[string]string{}, map[string]int{}
		for _, task := range tasks {
			ids[task], pids[task] = process(task)
		}
		i, err := s.d.networks.Inspect(name)
		if err == nil && slices.ContainsFunc(tasks, func(task string) bool {
			if _, on := i.Containers[ids[task]]; on || pids[task] == 0 {
				return false
			}
			_, pid := process(task)
			return pid == pids[task] // else it has left because it ended
		}) {
			out = append(out, name)
		}
	}
	return out
}

// RemoveNetwork implements supply.Engine.
func (s taskSupplies) RemoveNetwork(ctx context.Context, n *cluster.Network) error {
	ref := n.Spec.Name
	if n.Overlay() { // it bears its object's id; its name may be that of one of this host's
		ref = n.ID
	}
	i, err := s.networks.Find(ref)
	if err == nil {
		if theirs := isOurs(n.Spec, i.Labels); theirs != nil {
			return theirs
		}
		err = s.networks.Remove(ctx, i.ID)
	}
	if errdefs.IsPermissionDenied(err) { // Docker's kind for one that has endpoints
		return fmt.Errorf("%w: %w", err, errdefs.ErrConflict)
	}
	return err
}

// Volume implements executor.Supplies.
func (s taskSupplies) Volume(ctx context.Context, v cluster.VolumeSpec) error {
	is, err := s.volumes.Get(ctx, v.Name)
	switch {
	case err == nil && v.External:
		return nil
	case err == nil:
		if p := v.Labels[projectLabel]; p != "" && is.Labels[projectLabel] != p {
			s.log.Warn(fmt.Sprintf("volume %q already exists but was not created for project %q. Use `external: true` to use an existing volume", v.Name, p))
		}
		return nil
	case !errdefs.IsNotFound(err):
		return err
	case v.External:
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("external volume %q not found", v.Name))
	}
	_, err = s.volumes.Create(ctx, volume.Request{Name: v.Name, Driver: v.Driver, Labels: v.Labels, Options: v.Options})
	return err
}

// RemoveVolume implements supply.Engine.
func (s taskSupplies) RemoveVolume(ctx context.Context, v cluster.VolumeSpec) error {
	is, err := s.volumes.Get(ctx, v.Name)
	if err != nil {
		return err
	}
	if p := v.Labels[projectLabel]; p != "" && is.Labels[projectLabel] != p {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("volume %q was not created for project %q", v.Name, p))
	}
	return s.volumes.Remove(ctx, v.Name, false)
}

// Files implements executor.Supplies.
func (s taskSupplies) Files(_ context.Context, task string, files []executor.File) ([]string, error) {
	if len(files) == 0 {
		return nil, s.files.remove(task)
	}
	return s.files.put(task, files)
}

// Sweep implements executor.Supplies.
func (s taskSupplies) Sweep(_ context.Context, kept func(task string) bool) error {
	return s.files.sweep(kept)
}
