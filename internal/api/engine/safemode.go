package engine

import "net/http"

// SafeMode is the state in which the engine starts nothing by itself.
type SafeMode interface {
	SafeMode() (on bool, why string)
	SetSafeMode(on bool) error
}

// safeRoutes are Escale's own, beside Docker's.
type safeRoutes struct{ *Server }

func (s safeRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/escale/safe-mode", s.show},
		{http.MethodPost, "/escale/safe-mode", s.set},
	}
}

// safeModeAnswer tells the state, and why it is so.
type safeModeAnswer struct {
	SafeMode bool
	Reason   string `json:",omitempty"`
}

func (s safeRoutes) show(w *response, _ *request) error {
	on, why := s.cfg.SafeMode.SafeMode()
	return writeJSON(w, http.StatusOK, safeModeAnswer{on, why})
}

func (s safeRoutes) set(w *response, r *request) error {
	switch v := r.query.get("on"); v {
	case "true", "1", "false", "0":
		return done(w, s.cfg.SafeMode.SetSafeMode(v == "true" || v == "1"))
	default:
		return invalidf("invalid value %q of on: want true or false", v)
	}
}
