package engine

import (
	"net/http"
	"strconv"
	"time"

	ask "escale.dev/escale/internal/builder/request"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	apicontainer "github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	apiimage "github.com/moby/moby/api/types/image"
)

// prune removes the containers that do not run. One that cannot be removed does
// not keep the others.
func (c containerRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"label", "label!", "until"})
	if err != nil {
		return err
	}
	until, err := f.time("until", time.Now())
	if err != nil {
		return err
	}
	var report apicontainer.PruneReport
	views := c.cfg.Containers.List()
	for i := range views {
		v := &views[i]
		switch shownStatus(&v.State) {
		case string(container.Created), string(container.Exited), string(container.Dead):
		default:
			continue
		}
		if v.State.Status == container.Starting || (!until.IsZero() && !v.Created.Before(until)) ||
			!f.labels("label", v.Config.Labels) || !f.unlabelled("label!", v.Config.Labels) {
			continue
		}
		if r.Context().Err() != nil {
			break // the client has left
		}
		rw, _, err := c.cfg.Containers.Size(r.Context(), string(v.ID))
		if err != nil {
			rw = 0 // the space is freed all the same
		}
		how := container.Remove{}
		if v.State.Status == container.Created {
			how.Before = c.halting // what has ended was halted before, or another has its place
		}
		if err := c.cfg.Containers.Remove(detached(r), string(v.ID), how); err != nil {
			if !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				c.log.Warn("pruning container", "container", v.ID.Short(), "error", err)
			}
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, string(v.ID))
		report.SpaceReclaimed += uint64(max(0, rw))
	}
	c.tellPrune(apievents.ContainerEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

func (i imageRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"dangling", "label", "label!", "until"})
	if err != nil {
		return err
	}
	dangling, err := f.truth("dangling", true)
	if err != nil {
		return err
	}
	until, err := f.time("until", time.Now())
	if err != nil {
		return err
	}
	o := image.PruneOptions{All: !dangling, Users: i.users()}
	o.Match = func(img image.Image) bool {
		if !until.IsZero() && (img.Config.Created == nil || !img.Config.Created.Before(until)) {
			return false
		}
		labels := img.Config.Config.Labels
		return f.labels("label", labels) && f.unlabelled("label!", labels)
	}
	done, err := i.cfg.Images.Prune(r.Context(), o)
	if err != nil {
		return err
	}
	report := apiimage.PruneReport{SpaceReclaimed: uint64(max(0, done.Bytes))}
	for _, d := range done.Deleted {
		report.ImagesDeleted = append(report.ImagesDeleted, apiimage.DeleteResponse{Untagged: d.Untagged, Deleted: d.Deleted})
	}
	i.tellPrune(apievents.ImageEventType, report.SpaceReclaimed)
	return writeJSON(w, http.StatusOK, report)
}

// prune removes parts of the build cache.
func (b buildRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), nil) // as Docker: what a builder does not know is let be
	if err != nil {
		return err
	}
	o := ask.Prune{All: r.query.bool("all"), Filters: f}
	now := time.Now()
	for _, key := range []string{"until", "unused-for"} {
		if !f.has(key) {
			continue
		}
		since, err := f.time(key, now)
		if err != nil {
			return err
		}
		o.UnusedFor = max(o.UnusedFor, now.Sub(since))
	}
	for _, size := range []struct {
		key string
		to  *int64
	}{{"keep-storage", &o.ReservedSpace}, {"reserved-space", &o.ReservedSpace}, {"max-used-space", &o.MaxUsedSpace}, {"min-free-space", &o.MinFreeSpace}} {
		if text := r.query.get(size.key); text != "" {
			if *size.to, err = strconv.ParseInt(text, 10, 64); err != nil {
				return invalidf("%s is in bytes and expects an integer, got %v", size.key, text)
			}
		}
	}
	gone, err := b.cfg.Builder.Prune(r.Context(), o)
	if err != nil {
		return err
	}
	b.tellPrune(apievents.BuilderEventType, uint64(max(0, gone.Bytes)))
	return writeJSON(w, http.StatusOK, build.CachePruneReport{CachesDeleted: gone.IDs, SpaceReclaimed: uint64(max(0, gone.Bytes))})
}

// tellPrune publishes what a prune gave back, in bytes.
func (s *Server) tellPrune(kind apievents.Type, reclaimed uint64) {
	s.cfg.Events.Publish(events.Message{
		Type: kind, Action: apievents.ActionPrune,
		Actor: apievents.Actor{Attributes: map[string]string{"reclaimed": strconv.FormatUint(reclaimed, 10)}},
	})
}

// users tells, from one look at the containers, which of them use an image.
func (s *Server) users() func(imageID string) []image.User {
	byImage := map[string][]image.User{}
	views := s.cfg.Containers.List()
	for i := range views {
		v := &views[i]
		running := v.State.Running() || v.State.Status == container.Restarting || v.State.Status == container.Starting
		byImage[v.ImageID] = append(byImage[v.ImageID], image.User{Container: string(v.ID), Running: running})
	}
	return func(id string) []image.User { return byImage[id] }
}
