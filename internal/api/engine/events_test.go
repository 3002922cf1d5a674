package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/events"
	apievents "github.com/moby/moby/api/types/events"
)

func event(kind apievents.Type, action, id string, attrs map[string]string) events.Message {
	return events.Message{Type: kind, Action: apievents.Action(action), Actor: apievents.Actor{ID: id, Attributes: attrs}, Scope: "local"}
}

func someEvents() []events.Message {
	web := map[string]string{"image": "app:1", "name": "web", "k": "v"}
	return []events.Message{
		event("container", "create", "aaaa", web),
		event("container", "exec_start: sh -c x", "aaaa", web),
		event("container", "health_status: healthy", "aaaa", web),
		event("image", "tag", "sha256:1111", map[string]string{"name": "debian:latest"}),
		event("network", "connect", "nnnn", map[string]string{"name": "bridge", "container": "aaaa"}),
		event("volume", "create", "vol", map[string]string{"driver": "local"}),
		event("daemon", "reload", "dddd", map[string]string{"name": "host"}),
	}
}

func TestEventFilters(t *testing.T) {
	for query, want := range map[string]string{
		``:                                     "create exec_start: sh -c x health_status: healthy tag connect create reload",
		`{"type":["container","volume"]}`:      "create exec_start: sh -c x health_status: healthy create",
		`{"type":{"image":true}}`:              "tag",
		`{"event":["exec_start"]}`:             "exec_start: sh -c x",
		`{"event":["health_status"]}`:          "health_status: healthy",
		`{"event":["health_status: sick"]}`:    "",
		`{"event":["create"]}`:                 "create create",
		`{"container":["web"]}`:                "create exec_start: sh -c x health_status: healthy",
		`{"container":["aa"]}`:                 "create exec_start: sh -c x health_status: healthy",
		`{"container":["zz"]}`:                 "",
		`{"image":["app"]}`:                    "create exec_start: sh -c x health_status: healthy",
		`{"image":["debian:latest"]}`:          "tag",
		`{"image":["sha256"]}`:                 "",
		`{"label":["k=v"],"event":["create"]}`: "create",
		`{"label":["k=w"]}`:                    "",
		`{"network":["bridge"]}`:               "connect",
		`{"volume":["vol"]}`:                   "create",
		`{"daemon":["host"]}`:                  "reload",
		`{"scope":["swarm"]}`:                  "",
		`{"unknown":["x"],"type":["image"]}`:   "tag",
	} {
		r := newRig(t)
		for _, m := range someEvents() {
			r.events.Publish(m)
		}
		status, h, body := r.do("GET", "/events?since=1&until="+url.QueryEscape(time.Now().Format(time.RFC3339Nano))+"&filters="+url.QueryEscape(query), "")
		var got []string
		dec := json.NewDecoder(strings.NewReader(body))
		for dec.More() {
			var m events.Message
			if err := dec.Decode(&m); err != nil {
				t.Fatal(err)
			}
			got = append(got, string(m.Action))
		}
		if status != 200 || h.Get("Content-Type") != "application/json" || strings.Join(got, " ") != want {
			t.Errorf("%s: %d %q, want %q", query, status, got, want)
		}
	}
}

func TestEventErrors(t *testing.T) {
	r := newRig(t)
	for query, want := range map[string]string{
		"since=abc":       `{"message":"invalid value for since…`,
		"until=abc":       `{"message":"invalid value for until…`,
		"since=3&until=2": "{\"message\":\"`since` time (3) cannot be after `until` time (2)\"}",
		"filters=x":       `{"message":"invalid filter"}`,
	} {
		status, _, body := r.do("GET", "/events?"+query, "")
		check(t, status, body, 400, want)
	}
}

// Events come as they happen, one line each, after a header at once.
func TestEventStream(t *testing.T) {
	for _, tt := range []struct {
		prefix, accept, media string
		first                 string
	}{
		{"", "", "application/json", `{"Type":"container","Action":"create","Actor":{"ID":"aaaa"`},
		{"", "application/x-ndjson", "application/x-ndjson", `{"Type"`},
		{"", "text/html, application/json-seq;q=1", "application/json-seq", "\x1e" + `{"Type"`},
		{"", "application/jsonl", "application/jsonl", `{"Type"`},
		{"/v1.52", "application/jsonl", "application/json", `{"Type"`},
		{"/v1.51", "application/x-ndjson", "application/json", `{"status":"create","id":"aaaa","from":"app:1","Type":"container"`},
	} {
		r := newRig(t)
		c := r.dial()
		fmt.Fprintf(c, "GET %s/events HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n\r\n", tt.prefix, tt.accept)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Header.Get("Content-Type"); got != tt.media {
			t.Errorf("%+v: %s", tt, got)
		}
		in := bufio.NewReader(res.Body)
		for _, m := range someEvents()[:4] {
			r.events.Publish(m)
			got, err := in.ReadString('\n')
			if err != nil || (m.Action == "create" && !strings.HasPrefix(got, tt.first)) {
				t.Errorf("%+v: %q %v", tt, got, err)
			}
			if tt.prefix == "/v1.51" && m.Action == "tag" && !strings.HasPrefix(got, `{"status":"tag","id":"sha256:1111","Type"`) {
				t.Errorf("%q", got)
			}
		}
	}
}

// A client that reads too slowly for the journal is told how many events it missed,
// whatever it filters by, and gets the rest: read and lost are all there were.
func TestSlowEventReaderIsTold(t *testing.T) {
	r := newRig(t)
	c := r.dial()
	fmt.Fprintf(c, "GET /events?filters=%s HTTP/1.1\r\nHost: x\r\n\r\n", url.QueryEscape(`{"type":["container"]}`))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	const total = 20_000
	pad := strings.Repeat("x", 1000)
	for i := range total {
		r.events.Publish(events.Message{Type: "container", Action: "start", Actor: apievents.Actor{ID: strconv.Itoa(i), Attributes: map[string]string{"pad": pad}}})
	}
	r.events.Publish(events.Message{Type: "container", Action: "die", Actor: apievents.Actor{ID: "last"}})
	in := json.NewDecoder(res.Body)
	got, lost, next := 0, 0, 0
	for {
		var m events.Message
		if err := in.Decode(&m); err != nil {
			t.Fatal(err)
		}
		if m.Actor.ID == "last" {
			break
		}
		if m.Type == "daemon" && m.Action == "lagged" {
			n, _ := strconv.Atoi(m.Actor.Attributes["lost"])
			lost, next = lost+n, next+n
			continue
		}
		if m.Actor.ID != strconv.Itoa(next) {
			t.Fatalf("event %s, want %d", m.Actor.ID, next)
		}
		next++
		got++
	}
	if lost == 0 || got+lost != total {
		t.Errorf("%d read, %d told lost, of %d", got, lost, total)
	}
}
