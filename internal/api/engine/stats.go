package engine

import (
	"encoding/json"
	"net/http"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
)

// watchRoutes show containers at work.
type watchRoutes struct{ *Server }

func (s watchRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/containers/{name...}/stats", s.stats},
		{http.MethodGet, "/containers/{name...}/top", s.top},
	}
}

// stats sends a line of JSON a sample.
func (s watchRoutes) stats(w *response, r *request) error {
	var o container.StatsOptions
	o.Stream = !r.query.has("stream") || r.query.bool("stream")
	o.OneShot = !r.version.before(41) && r.query.bool("one-shot")
	if o.Stream && o.OneShot && r.version.before(52) {
		return invalidf("cannot have stream=true and one-shot=true")
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return s.cfg.Watching.Stats(r.Context(), r.name, o, func(sample *apicontainer.StatsResponse) error {
		if w.status == 0 {
			w.Header().Set("Content-Type", "application/json")
		}
		if r.version.before(52) {
			older := *sample
			older.OSType = ""
			sample = &older
		}
		if err := enc.Encode(sample); err != nil {
			return err
		}
		return w.flush()
	})
}
