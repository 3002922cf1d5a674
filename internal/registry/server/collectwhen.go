package server

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// collectByClock collects at every interval of the configuration until ctx ends,
// where anybody has asked the registry for something: else there is nothing new.
// The first is an interval after the start: by then clients of an earlier run
// of the registry have asked again for what they rely on.
func (s *Server) collectByClock(ctx context.Context) {
	if s.cfg.Every == 0 {
		return
	}
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.opened() {
			continue
		}
		_, err := s.Collect(ctx, Options{Grace: s.cfg.Grace, Untagged: s.cfg.Untagged, Rules: s.cfg.Retain})
		if err != nil && ctx.Err() == nil {
			s.log.Error("collecting", "error", err)
		}
	}
}

// gcPath is where collections are asked for: no repository can have the name.
const gcPath = "/v2/_escale/gc"

// serveCollect answers POST /v2/_escale/gc?dryrun=1&grace=AGE&untagged=1&retain=RULE….
// What is not said is as configured.
func (s *Server) serveCollect(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, codeUnsupported, "a collection is asked for by POST")
		return
	}
	q := r.URL.Query()
	o := Options{Grace: s.cfg.Grace, Untagged: s.cfg.Untagged, Rules: s.cfg.Retain, DryRun: q.Get("dryrun") == "1"}
	var err error
	if g := q.Get("grace"); g != "" {
		if o.Grace, err = ParseAge(g); err != nil {
			refuse(w, http.StatusBadRequest, codeUnsupported, "grace: "+err.Error())
			return
		}
	}
	if u := q.Get("untagged"); u != "" {
		o.Untagged = u == "1"
	}
	if rules := q["retain"]; len(rules) > 0 {
		o.Rules = nil
		for _, text := range rules {
			rule, err := ParseRule(text)
			if err != nil {
				refuse(w, http.StatusBadRequest, codeUnsupported, err.Error())
				return
			}
			o.Rules = append(o.Rules, rule)
		}
	}
	out, err := s.Collect(r.Context(), o)
	switch {
	case errors.Is(err, errCollecting):
		refuse(w, http.StatusConflict, codeUnsupported, err.Error())
	case err != nil:
		s.fail(w, r, err)
	default:
		answerJSON(w, out)
	}
}
