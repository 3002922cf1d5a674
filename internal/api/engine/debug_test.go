package engine

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestDebugRoutes(t *testing.T) {
	for _, c := range []struct {
		debug  bool
		path   string
		status int
		want   string
	}{
		{false, "/debug/pprof/goroutine?debug=1", 404, "page not found"},
		{false, "/debug/vars", 404, "page not found"},
		{true, "/debug/pprof/goroutine?debug=1", 200, "goroutine profile: total "},
		{true, "/v1.44/debug/pprof/heap?debug=1", 200, "heap profile: "},
		{true, "/debug/pprof/", 200, "full goroutine stack dump"},
		{true, "/debug/pprof/nothing", 404, "Unknown profile"},
		{true, "/debug/vars", 200, `"memstats"`},
	} {
		w := httptest.NewRecorder()
		New(Config{System: fakeSystem{}, Debug: c.debug}).Handler().ServeHTTP(w, httptest.NewRequest("GET", c.path, nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s with debug %v: %d %.200s", c.path, c.debug, w.Code, w.Body)
		}
	}
}
