package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/handed"
	composefile "escale.dev/escale/internal/compose"
)

// paper is a session with an engine of paper, and what it prints.
func paper(t *testing.T, h http.Handler) (*session, *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	var out bytes.Buffer
	return &session{out: &out, err: &out, engine: &handed.Engine{Name: "escale", Host: "unix://" + path, APIVersion: "1.50", ConfigDir: t.TempDir()}}, &out
}

// An app is followed until it is as its plan has it, or cannot be.
func TestUntil(t *testing.T) {
	up := func(asked, number uint64, phase, message string, tasks ...client.AppTask) client.App {
		healthy := uint64(0)
		for _, x := range tasks {
			if x.Healthy {
				healthy++
			}
		}
		return client.App{Name: "shop", Asked: asked, Number: number, Phase: phase, Message: message, Services: []client.AppService{{Name: "web", Replicas: 1, Healthy: healthy, Tasks: tasks}}}
	}
	well := client.AppTask{Name: "shop-web-1", State: "running", Healthy: true}
	waits := client.AppTask{Name: "shop-web-1", State: "pending", Message: "waits for service shop_db: 0 of 1 started"}
	bad := client.AppTask{Name: "shop-web-1", State: "failed", Err: "exit code 3", Container: "c1"}
	nowhere := client.AppTask{Name: "shop-web-1", State: "pending", Err: "no suitable node (node not available on 1 node)"}
	addressless := client.AppTask{Name: "shop-web-1", State: "new", Message: "pending address allocation", Err: "Address 10.1.0.9 is not in a subnet of network lan"}
	moving := client.AppTask{Name: "shop-web-1", State: "pending", Err: `no suitable node (volume "d" is being moved from node a to node b)`}
	shares := client.AppTask{Name: "shop-side-1", State: "accepted", Message: "waits for service shop_web: 0 of 1 started"}
	stay := client.App{} // nothing is told for half a second
	for name, c := range map[string]struct {
		action  string
		states  []client.App
		failure string // what the error must say; "" is none
		lines   string
	}{
		"all is there":        {"keep", []client.App{up(2, 2, "steady", "", well)}, "", " Service web  Running\n"},
		"it comes":            {"create", []client.App{up(1, 0, "changing", ""), up(2, 1, "changing", "", waits), up(2, 2, "steady", "", well)}, "", " Service web  Starting\n Service web  Starting: waits for service shop_db: 0 of 1 started\n Service web  Started\n"},
		"steady of before":    {"replace", []client.App{up(2, 1, "steady", "", well), up(2, 2, "changing", "", well), up(2, 2, "steady", "", well)}, "", " Service web  Recreated\n Service web  Updating\n Service web  Recreated\n"},
		"it fails":            {"create", []client.App{up(2, 2, "failed", "web: exit code 3", bad)}, "app shop: web: exit code 3\nWhat shop-web-1 wrote last:\n  | giving up\nThe engine goes on trying. See 'escale logs shop'", ""},
		"it goes back":        {"replace", []client.App{up(2, 2, "reverted", "web: too many failed", bad)}, "It is what it was before. Change the file and say 'escale up' again.", ""},
		"what it needs fails": {"create", []client.App{up(2, 2, "changing", "", waits), up(2, 2, "failed", `web: service "web" didn't complete successfully: exit 4`, bad)}, "app shop: web: service \"web\" didn't complete successfully: exit 4\nshop-web-1: exit code 3\nWhat shop-web-1 wrote last:\n  | giving up\nIt is not tried again by itself. See 'escale logs shop'", ""},
		"failed before":       {"create", []client.App{up(2, 1, "failed", "web: old", bad), up(2, 2, "steady", "", well)}, "", ""},
		"somebody else asked": {"create", []client.App{up(3, 3, "changing", "")}, "somebody has asked for another change meanwhile", ""},
		"removed":             {"create", []client.App{up(2, 2, "changing", ""), {Name: "shop", Asked: 2, Removed: true}}, "it was removed meanwhile", ""},
		"woken":               {"start", []client.App{up(2, 2, "steady", ""), up(2, 2, "steady", "", well)}, "", " Service web  Starting\n Service web  Started\n"},
		"no node suits":       {"create", []client.App{up(2, 2, "changing", "", nowhere), stay}, "app shop: service web: shop-web-1: no suitable node (node not available on 1 node)\nNothing has changed for 200ms. The app is kept. It starts once its node is back: 'escale node ls' tells which is down, 'escale node update --availability active NODE'", ""},
		"nor what shares":     {"create", []client.App{up(2, 2, "changing", "", nowhere, shares), stay}, "no suitable node (node not available on 1 node)\nNothing has changed for 200ms", ""},
		"what shares comes":   {"create", []client.App{up(2, 2, "changing", "", nowhere, client.AppTask{Name: "shop-side-1", State: "accepted", Message: "accepted"}), stay, up(2, 2, "steady", "", well)}, "", "Started"},
		"no address suits":    {"create", []client.App{up(2, 2, "changing", "", addressless), stay}, "service web: shop-web-1: Address 10.1.0.9 is not in a subnet of network lan\nNothing has changed for 200ms. The app is kept. Change the file and say 'escale up' again.", ""},
		"a node comes":        {"create", []client.App{up(2, 2, "changing", "", nowhere), up(2, 2, "changing", "", client.AppTask{Name: "shop-web-1", State: "preparing"}), stay, up(2, 2, "steady", "", well)}, "", "Started"},
		"others come":         {"create", []client.App{up(2, 2, "changing", "", nowhere, client.AppTask{Name: "shop-web-2", State: "starting"}), stay, up(2, 2, "steady", "", well)}, "", "Started"},
		"a volume moves":      {"create", []client.App{up(2, 2, "changing", "", moving), stay, up(2, 2, "steady", "", well)}, "", "Started"},
		"the engine ends":     {"create", []client.App{up(2, 2, "changing", "")}, "the engine has stopped telling of it", ""},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc("/v1.50/escale/apps/shop/follow", func(w http.ResponseWriter, _ *http.Request) {
				for _, a := range c.states {
					if a.Name == "" {
						_ = http.NewResponseController(w).Flush()
						time.Sleep(500 * time.Millisecond)
						continue
					}
					_ = json.NewEncoder(w).Encode(a)
				}
			})
			mux.HandleFunc("/v1.50/containers/c1/json", func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(`{"Id":"c1","Config":{"Tty":true}}`))
			})
			mux.HandleFunc("/v1.50/containers/c1/logs", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("giving up\n")) })
			s, out := paper(t, mux)
			b := s.board("Running")
			plan := &client.AppPlan{App: "shop", From: 1, To: 2, Steps: []client.AppStep{{Action: c.action, Kind: "service", Name: "web"}}}
			err := apps{s}.until(t.Context(), b, plan, patience{still: 200 * time.Millisecond})
			switch {
			case c.failure == "" && err != nil, c.failure != "" && (err == nil || !strings.Contains(err.Error(), c.failure)):
				t.Errorf("%v, want %q", err, c.failure)
			case !strings.Contains(out.String(), c.lines):
				t.Errorf("%q, want %q", out, c.lines)
			}
		})
	}
}

// A plan is printed with its reasons; one that changes nothing says so.
func TestPlanned(t *testing.T) {
	s, out := paper(t, http.NotFoundHandler())
	apps{s}.planned(&client.AppPlan{App: "shop", Steps: []client.AppStep{
		{Action: "keep", Kind: "network", Name: "default"}, {Action: "replace", Kind: "service", Name: "web", Why: []string{"image: a → b"}},
	}})
	if want := "replace  service  web\n                   image: a → b\n"; out.String() != want {
		t.Errorf("%q, want %q", out, want)
	}
	out.Reset()
	apps{s}.planned(&client.AppPlan{App: "shop", Steps: []client.AppStep{{Action: "keep", Kind: "service", Name: "web"}}})
	if want := "app shop is as it is asked: nothing would change\n"; out.String() != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// An engine that keeps no apps is told of as such; containers are still found there.
func TestEngineWithoutApps(t *testing.T) {
	s, _ := paper(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		_, _ = w.Write([]byte(`{"message":"page not found"}`))
	}))
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{"testdata/build.yaml"}, Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = apps{s}.put(t.Context(), &change{project: p})
	if err == nil || !strings.Contains(err.Error(), "keeps no apps") {
		t.Error(err)
	}
	if there, err := (apps{s}).kept(context.Background(), "p"); there || err != nil {
		t.Errorf("kept: %v, %v", there, err)
	}
}

func TestLayers(t *testing.T) {
	of := func(service, needs string) container.Summary {
		return container.Summary{Names: []string{"/" + service}, Labels: map[string]string{composefile.LabelService: service, composefile.LabelDependsOn: needs}}
	}
	for want, list := range map[string][]container.Summary{
		"db|cache web": {of("web", "db:service_started:false"), of("db", ""), of("cache", "db:service_healthy:true")},
		"a b|c":        {of("c", "a:service_started:false,b:service_started:false"), of("b", ""), of("a", "gone:service_started:false")},
		"a b":          {of("a", "b:service_started:false"), of("b", "a:service_started:false")}, // in a circle
	} {
		var rows []string
		for _, row := range layers(list) {
			var names []string
			for i := range row {
				names = append(names, nameOf(&row[i]))
			}
			rows = append(rows, strings.Join(names, " "))
		}
		if got := strings.Join(rows, "|"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestPrinter(t *testing.T) {
	var out bytes.Buffer
	p := &printer{out: &out, err: &out, prefix: true}
	p.register("web-1")
	p.register("db-1")
	l := &lines{p: p, w: &out, name: "db-1"}
	for _, part := range []string{"one\ntw", "o\r\n", "\n", "rest"} {
		_, _ = l.Write([]byte(part))
	}
	l.end()
	p.status("web-1", "exited with code 1")
	if want := "db-1   | one\ndb-1   | two\ndb-1   | \ndb-1   | rest\nweb-1 exited with code 1\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// What does not go together is refused before anything is done.
func TestUpFlags(t *testing.T) {
	for want, o := range map[string]upOptions{
		"--build and --no-build":                       {wanted: wanted{build: true, noBuild: true}},
		"--detach cannot be combined":                  {detach: true, abortOnExit: true},
		"--wait cannot be combined":                    {wait: true, watch: true},
		"--attach and --attach-dependencies":           {attachDeps: true, attach: []string{"a"}},
		"--force-recreate and --no-recreate":           {forceRecreate: true, noRecreate: true},
		"--always-recreate-deps and --no-recreate":     {recreateDeps: true, noRecreate: true},
		"--no-start and --watch":                       {noStart: true, watch: true},
		"there is no menu":                             {menu: true},
		"--abort-on-container-exit and --abort-on-con": {exitFrom: "a", abortOnFailure: true},
	} {
		if err := o.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for text, ok := range map[string]bool{"a=3": true, "a=0": true, "a": false, "a=": false, "=3": false, "a=-1": false, "a=3x": false, "a= 3": false} {
		if _, err := scaleArgs([]string{text}); (err == nil) != ok {
			t.Errorf("--scale %s: %v", text, err)
		}
	}
}

// Who is to blame is who the engine means, and not whose end it remembers from before.
func TestCulprit(t *testing.T) {
	at := time.Now()
	task := func(name, err string, ago time.Duration) client.AppTask {
		return client.AppTask{Name: name, State: "failed", Err: err, Since: at.Add(-ago)}
	}
	app := func(message string) *client.App {
		return &client.App{Message: message, Services: []client.AppService{{Name: "web", Tasks: []client.AppTask{
			task("shop-web-1", "exit (1)", time.Hour), task("shop-web-2", "exit (2)", 2*time.Hour),
		}}}}
	}
	for _, c := range []struct{ message, told, want string }{
		{"web: rollback completed (shop-web-1: unhealthy)", "app shop: web: rollback completed (shop-web-1: unhealthy)", ""},
		{"web: rollback completed (shop-web-2: exit (2))", "app shop: web: rollback completed (shop-web-2: exit (2))", "shop-web-2"},
		{"web: exit (2)", "app shop: web: exit (2)", "shop-web-2"},
		{"", "not all is up after 3 seconds", "shop-web-1"},
	} {
		got := ""
		if found := culprit(app(c.message), c.told); found != nil {
			got = found.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.told, got, c.want)
		}
	}
}

// A service that starts is not said to wait for what failed when it was something else.
func TestSlowest(t *testing.T) {
	old := client.AppTask{Name: "shop-web-1", Number: 1, State: "failed", Err: "exit (1)"}
	sv := client.AppService{Tasks: []client.AppTask{{Number: 2, State: "preparing"}, old}}
	if got := slowest(&sv); got != "preparing" {
		t.Errorf("%q", got)
	}
	old.Number = 2
	sv.Tasks[1] = old
	if got := slowest(&sv); got != "shop-web-1: exit (1)" {
		t.Errorf("%q", got)
	}
}

// Who waits is told of what has ended badly and is left so; of what was so before in a place that
// is well now, and of others' services, nobody.
func TestBadEnds(t *testing.T) {
	task := func(name, state string, slot uint64, code int) client.AppTask {
		return client.AppTask{Name: name, State: state, Slot: slot, ExitCode: code}
	}
	for want, services := range map[string][]client.AppService{
		"":                                {{Name: "web", Tasks: []client.AppTask{task("shop-web-1", "running", 1, 0), task("shop-web-1", "failed", 1, 4)}}, {Name: "other", Tasks: []client.AppTask{task("shop-other-1", "failed", 1, 5)}}},
		"container shop-web-2 exited (4)": {{Name: "web", Tasks: []client.AppTask{task("shop-web-1", "complete", 1, 0), task("shop-web-2", "failed", 2, 4), task("shop-web-2", "failed", 2, 5)}}},
	} {
		mux := http.NewServeMux()
		mux.HandleFunc("/v1.50/escale/apps/shop", func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(client.App{Name: "shop", Services: services})
		})
		s, _ := paper(t, mux)
		b := s.board("Running")
		err := apps{s}.badEnds(t.Context(), b, &change{project: &types.Project{Name: "shop"}, names: []string{"web"}})
		b.Close()
		if got := fmt.Sprint(err); got != want && (err != nil || want != "") {
			t.Errorf("%s, want %q", got, want)
		}
	}
}

// A container that is made and waits is listed once: as itself where it is listed, else as the
// task that it is of.
func TestPsOfWhatWaits(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1.50/escale/apps/shop", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.App{Name: "shop", Services: []client.AppService{{Name: "web", Tasks: []client.AppTask{
			{ID: "t1", Name: "shop-web-1", State: "ready", Message: "prepared", Desired: "running"}, {ID: "t2", Name: "shop-web-2", State: "pending", Desired: "running"},
		}}}})
	})
	mux.HandleFunc("/v1.50/containers/json", func(w http.ResponseWriter, r *http.Request) {
		out := []container.Summary{}
		if r.FormValue("all") == "1" {
			out = append(out, container.Summary{ID: "c1", Names: []string{"/shop-web-1"}, State: "created", Status: "Created", Labels: map[string]string{composefile.LabelProject: "shop", composefile.LabelService: "web", "com.docker.swarm.task.id": "t1"}})
		}
		_ = json.NewEncoder(w).Encode(out)
	})
	s, out := paper(t, mux)
	s.flags.name, s.engine.ByName = "shop", true
	for all, want := range map[bool]string{
		true:  "c1 shop-web-1 Created\n shop-web-2 Pending\n",
		false: " shop-web-1 Ready: prepared\n shop-web-2 Pending\n",
	} {
		out.Reset()
		if err := (lists{s}).ps(t.Context(), psOptions{all: all, format: "{{.ID}} {{.Name}} {{.Status}}"}, nil); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("all: %t: %q, want %q", all, out, want)
		}
	}
}

// What start and restart mean of a kept app are the containers that hold its places.
func TestCurrent(t *testing.T) {
	task := func(id, state, desired string, slot uint64, node string) client.AppTask {
		return client.AppTask{ID: id, State: state, Desired: desired, Slot: slot, Node: node}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1.50/escale/apps/shop", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(client.App{Name: "shop", Services: []client.AppService{
			{Name: "web", Tasks: []client.AppTask{
				task("new", "running", "running", 1, "n"), task("old", "failed", "shutdown", 1, "n"),
				task("stopped", "running", "running", 2, "n"), task("killed", "failed", "running", 3, "n"), task("once", "failed", "shutdown", 4, "n"),
			}},
			{Name: "all", Tasks: []client.AppTask{task("here", "running", "running", 0, "n"), task("there", "running", "running", 0, "m"), task("before", "failed", "shutdown", 0, "m")}},
		}})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		_, _ = w.Write([]byte(`{"message":"no such app"}`))
	})
	s, _ := paper(t, mux)
	var list []container.Summary
	for _, id := range []string{"new", "old", "stopped", "killed", "once", "here", "there", "before", "forgotten", ""} {
		list = append(list, container.Summary{ID: id, Labels: map[string]string{"com.docker.swarm.task.id": id}})
	}
	for project, want := range map[string]string{
		"shop":  "new stopped once here there ",
		"other": "new old stopped killed once here there before forgotten ",
	} {
		got, err := s.current(t.Context(), project, list)
		var ids []string
		for i := range got {
			ids = append(ids, got[i].ID)
		}
		if err != nil || strings.Join(ids, " ") != want {
			t.Errorf("%s: %q, %v; want %q", project, strings.Join(ids, " "), err, want)
		}
	}
}

// A raw file of variables is read as it stands; one that is wrong is named.
func TestRawEnvFile(t *testing.T) {
	s, _ := paper(t, http.NotFoundHandler())
	newRoot(s)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"compose.yaml": "services: {a: {image: i, env_file: [{path: x, format: raw}]}}",
		"bad.yaml":     "services: {a: {image: i, env_file: [{path: bad, format: raw}]}}",
		"x":            "# no\nA=\"q $HOME\" # all\nWHO\nNOBODY\n",
		"bad":          "A B=1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := composefile.Load(t.Context(), composefile.Options{Files: []string{filepath.Join(dir, "compose.yaml")}, Name: "p", Env: []string{"WHO=me"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, v := range p.Services["a"].Environment {
		got[name] = *v
	}
	if want := map[string]string{"A": `"q $HOME" # all`, "WHO": "me"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	_, err = composefile.Load(t.Context(), composefile.Options{Files: []string{filepath.Join(dir, "bad.yaml")}, Name: "p"})
	if err == nil || !strings.Contains(err.Error(), "bad: variable 'A B' contains whitespaces") {
		t.Error(err)
	}
}
