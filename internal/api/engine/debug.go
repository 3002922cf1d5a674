package engine

import (
	"expvar"
	"net/http"
	"net/http/pprof"
)

// debugRoutes show the engine's own inside: profiles as `go tool pprof` reads
// them, and counters. They are there when the engine was started with --debug,
// under the addresses that dockerd has them at.
type debugRoutes struct{ *Server }

func (d debugRoutes) routes() []route {
	if !d.cfg.Debug {
		return nil
	}
	return []route{
		{"GET", "/debug/vars", plain(expvar.Handler().ServeHTTP)},
		{"GET", "/debug/pprof/", plain(pprof.Index)},
		{"GET", "/debug/pprof/cmdline", plain(pprof.Cmdline)},
		{"GET", "/debug/pprof/profile", plain(pprof.Profile)},
		{"GET", "/debug/pprof/symbol", plain(pprof.Symbol)},
		{"POST", "/debug/pprof/symbol", plain(pprof.Symbol)},
		{"GET", "/debug/pprof/trace", plain(pprof.Trace)},
		{"GET", "/debug/pprof/{name}", func(w *response, r *request) error {
			pprof.Handler(r.name).ServeHTTP(w, r.Request)
			return nil
		}},
	}
}

// plain is a handler of the standard library as one of ours.
func plain(h http.HandlerFunc) handler {
	return func(w *response, r *request) error {
		h(w, r.Request)
		return nil
	}
}
