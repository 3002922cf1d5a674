package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// What has ended has another in its place, which is waited for until it was started, or cannot be,
// or has to wait for long itself.
func TestAgain(t *testing.T) {
	task := func(state, message, err string) client.AppTask {
		return client.AppTask{ID: "next", State: state, Message: message, Err: err}
	}
	old := client.AppTask{ID: "old", State: "complete"}
	for name, c := range map[string]struct {
		told [][]client.AppTask
		want string
	}{
		"runs":         {[][]client.AppTask{{task("new", "", ""), old}, {task("preparing", "", ""), old}, {task("running", "", ""), old}}, ""},
		"ends at once": {[][]client.AppTask{{task("starting", "", "")}, {task("failed", "", "non-zero exit (3)")}}, ""},
		"has gone":     {[][]client.AppTask{{task("starting", "", "")}, {old}}, ""},
		"cannot be":    {[][]client.AppTask{{task("preparing", "", "")}, {task("rejected", "", "No such image: x")}}, "container one-1: No such image: x"},
		"waits":        {[][]client.AppTask{{task("accepted", "waits for service db", "")}}, "container one-1: it is not started yet: waits for service db"},
		"has no node":  {[][]client.AppTask{{task("pending", "", "no suitable node")}}, "container one-1: it is not started yet: no suitable node"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := paper(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/escale/apps/shop/again") && r.Method == "POST" && r.URL.Query().Get("task") == "old":
					_, _ = w.Write([]byte(`{"Task":"next"}`))
				case strings.HasSuffix(r.URL.Path, "/escale/apps/shop/follow"):
					for _, tasks := range c.told {
						_ = json.NewEncoder(w).Encode(client.App{Name: "shop", Services: []client.AppService{{Name: "one", Tasks: tasks}}})
					}
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done()
				default:
					w.WriteHeader(http.StatusBadRequest)
				}
			}))
			cl, err := s.client()
			if err != nil {
				t.Fatal(err)
			}
			x := &container.Summary{ID: "c", Names: []string{"/one-1"}, Labels: map[string]string{composefile.LabelProject: "shop", cluster.LabelTask: "old"}}
			still := time.Minute
			if strings.Contains(c.want, "not started yet") {
				still = 20 * time.Millisecond
			}
			err = againWithin(t.Context(), cl, x, errdefs.ErrConflict, still)
			if got := errorText(err); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Only for what has ended another is made: what an app's container that lives was refused for is
// told, and what is about to be tried again by itself needs nobody.
func TestAgainOfOneThatLives(t *testing.T) {
	paused := fmt.Errorf("cannot start a paused container, try unpause instead: %w", errdefs.ErrConflict)
	for state, want := range map[string]error{"running": paused, "starting": paused, "failed": nil} {
		s, _ := paper(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/again") {
				_, _ = w.Write([]byte(`{"Task":"old"}`))
				return
			}
			_ = json.NewEncoder(w).Encode(client.App{Name: "shop", Services: []client.AppService{{Name: "one", Tasks: []client.AppTask{{ID: "other", State: "failed"}, {ID: "old", State: state, Halted: true}}}}})
		}))
		cl, err := s.client()
		if err != nil {
			t.Fatal(err)
		}
		x := &container.Summary{ID: "c", Names: []string{"/one-1"}, Labels: map[string]string{composefile.LabelProject: "shop", cluster.LabelTask: "old"}}
		if err := again(t.Context(), cl, x, paused); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", state, err, want)
		}
	}
}

// Other refusals stand, and so does that of a container that no app keeps any more.
func TestAgainRefused(t *testing.T) {
	s, _ := paper(t, http.NotFoundHandler())
	cl, err := s.client()
	if err != nil {
		t.Fatal(err)
	}
	x := &container.Summary{ID: "c", Names: []string{"/one-1"}, Labels: map[string]string{composefile.LabelProject: "shop", cluster.LabelTask: "old"}}
	for _, refusal := range []error{nil, errdefs.ErrUnavailable, errdefs.ErrConflict} {
		if err := again(t.Context(), cl, x, refusal); !errors.Is(err, refusal) {
			t.Errorf("%v became %v", refusal, err)
		}
	}
}

// Whether what has ended is to be started again is known a moment later.
func TestSettled(t *testing.T) {
	one := func(desired string) client.App {
		return client.App{Name: "shop", Services: []client.AppService{{Name: "one", Tasks: []client.AppTask{{ID: "t", State: "complete", Desired: desired}}}}}
	}
	s, _ := paper(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(one("running"))
		if strings.HasSuffix(r.URL.Path, "/follow") {
			_ = json.NewEncoder(w).Encode(one("shutdown"))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	cl, err := s.client()
	if err != nil {
		t.Fatal(err)
	}
	list := []container.Summary{{ID: "c", Labels: map[string]string{cluster.LabelTask: "t"}}, {ID: "d", Labels: map[string]string{cluster.LabelTask: "gone"}}, {ID: "e"}}
	got, err := s.current(t.Context(), "shop", list)
	if app, e := settled(t.Context(), cl, "shop"); err != nil || e != nil || undecided(app) || len(got) != 2 || got[0].ID != "c" || got[1].ID != "e" {
		t.Errorf("%v, %v, %+v", err, e, got)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
