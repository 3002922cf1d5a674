package engine

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
	apivolume "github.com/moby/moby/api/types/volume"
)

// volumeRoutes answer for volumes.
type volumeRoutes struct {
	*Server
	pruning *sync.Mutex // held while volumes are pruned
}

func (v volumeRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/volumes", v.list},
		{http.MethodPost, "/volumes/create", v.create},
		{http.MethodPost, "/volumes/prune", v.prune},
		{http.MethodGet, "/volumes/{name}", v.inspect},
		{http.MethodPut, "/volumes/{name}", v.update},
		{http.MethodDelete, "/volumes/{name}", v.remove},
	}
}

// apiVolume is a volume as the API shows it.
func apiVolume(v *volume.Volume) apivolume.Volume {
	return apivolume.Volume{
		Name: v.Name, Driver: v.Driver, Mountpoint: v.Path, Labels: v.Labels, Options: v.Options, Scope: v.Scope,
		CreatedAt: v.CreatedAt.Format(time.RFC3339),
	}
}

func (v volumeRoutes) list(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"dangling", "driver", "label", "name"})
	if err != nil {
		return err
	}
	dangling, err := f.truth("dangling", false)
	if err != nil {
		return err
	}
	names := f.patterns("name")
	list, warnings := v.cfg.Volumes.List(r.Context())
	answer := apivolume.ListResponse{Volumes: []apivolume.Volume{}, Warnings: warnings}
	for _, vol := range list {
		switch {
		case f.has("dangling") && dangling != (len(vol.Users) == 0),
			!f.exact("driver", vol.Driver), !f.labels("label", vol.Labels),
			len(names) > 0 && !anyMatch(names, vol.Name):
			continue
		}
		answer.Volumes = append(answer.Volumes, apiVolume(&vol))
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (v volumeRoutes) create(w *response, r *request) error {
	var req apivolume.CreateRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil && !r.version.before(42) {
		return errNoManager
	}
	vol, err := v.cfg.Volumes.Create(detached(r), volume.Request{Name: req.Name, Driver: req.Driver, Labels: req.Labels, Options: req.DriverOpts})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, apiVolume(&vol))
}

// errNoManager answers for what only a cluster has.
var errNoManager = errdefs.ErrUnavailable.WithMessage(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)

func (v volumeRoutes) inspect(w *response, r *request) error {
	vol, err := v.cfg.Volumes.Get(r.Context(), r.name)
	if err != nil {
		return err
	}
	shown := apiVolume(&vol)
	shown.Status = vol.Status
	return writeJSON(w, http.StatusOK, shown)
}

// update is for volumes of a cluster only.
func (v volumeRoutes) update(*response, *request) error { return errNoManager }

func (v volumeRoutes) remove(w *response, r *request) error {
	if err := v.cfg.Volumes.Remove(detached(r), r.name, r.query.bool("force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// prune removes the volumes that no container has: since API 1.42 anonymous ones
// only, unless all are asked for. Those with options and those of plugins are left
// alone before 1.42 as after: what they hold may not be ours.
func (v volumeRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"label", "label!", "all"})
	if err != nil {
		return err
	}
	all, err := f.truth("all", r.version.before(42))
	if err != nil {
		return err
	}
	if !v.pruning.TryLock() {
		return errdefs.ErrConflict.WithMessage("a prune operation is already running")
	}
	defer v.pruning.Unlock()
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	list, _ := v.cfg.Volumes.List(r.Context())
	for _, vol := range list {
		_, anonymous := vol.Labels[volume.Anonymous]
		if len(vol.Users) > 0 || !vol.OnDisk() || !all && !anonymous || !f.labels("label", vol.Labels) || !f.unlabelled("label!", vol.Labels) {
			continue
		}
		if r.Context().Err() != nil {
			break // the client has left
		}
		size, err := v.cfg.Volumes.Size(r.Context(), vol.Name)
		if err != nil {
			size = 0 // the space is freed all the same
		}
		if err := v.cfg.Volumes.Remove(detached(r), vol.Name, false); err != nil {
			if !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				v.log.Warn("pruning volume", "volume", vol.Name, "error", err)
			}
			continue
		}
		report.VolumesDeleted = append(report.VolumesDeleted, vol.Name)
		report.SpaceReclaimed += uint64(size)
	}
	v.tellPrune(apievents.VolumeEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

// volumeUsage measures the volumes whose files are on our disk, a few at a time. One
// that cannot be measured has a size of -1.
func (s *Server) volumeUsage(ctx context.Context) ([]apivolume.Volume, error) {
	list, _ := s.cfg.Volumes.List(ctx)
	list = slices.DeleteFunc(list, func(v volume.Volume) bool { return !v.OnDisk() })
	out := make([]apivolume.Volume, len(list))
	err := someAtATime(len(list), func(i int) error {
		size, err := s.cfg.Volumes.Size(ctx, list[i].Name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			size = -1
			if !errdefs.IsNotFound(err) {
				s.log.Warn("measuring volume", "volume", list[i].Name, "error", err)
			}
		}
		out[i] = apiVolume(&list[i])
		out[i].UsageData = &apivolume.UsageData{RefCount: int64(len(list[i].Users)), Size: size}
		return nil
	})
	return out, err
}
