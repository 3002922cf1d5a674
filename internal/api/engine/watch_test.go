package engine

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
)

func TestWatchRoutes(t *testing.T) {
	notRunning := wrap(errdefs.ErrConflict, "container web is not running")
	for _, tt := range []struct {
		method, path, body string
		fail               map[string]error
		status             int
		want               string
		call               string
	}{
		{"GET", "/containers/web/top", "", nil, 200, `{"Processes":[["1","sleep <9>"]],"Titles":["PID","CMD"]}`, "Top web"},
		{"GET", "/containers/web/top?ps_args=-o+pid,cmd", "", nil, 200, `{"Processes…`, "Top web -o pid,cmd"},
		{"GET", "/containers/web/top", "", map[string]error{"Top": notRunning}, 409, `{"message":"container web is not running"}`, "Top web"},
		{"GET", "/containers/nope/top", "", map[string]error{"Top": noSuch("container: nope")}, 404, `{"message":"No such container: nope"}`, "Top nope"},

		{"GET", "/containers/web/stats?stream=false", "", nil, 200, `{"id":"c0ffee","name":"/web","os_type":"linux","read":"0001-01-01T00:00:00Z","cpu_stats":{"cpu_usage":{"total_usage":5,…`, "Stats web false false"},
		{"GET", "/v1.51/containers/web/stats?stream=0", "", nil, 200, `{"id":"c0ffee","name":"/web","read":"0001-…`, "Stats web false false"},
		{"GET", "/containers/web/stats?stream=0&one-shot=1", "", nil, 200, `{"id…`, "Stats web false true"},
		{"GET", "/v1.40/containers/web/stats?stream=0&one-shot=1", "", nil, 200, `{"id…`, "Stats web false false"},
		{"GET", "/v1.41/containers/web/stats?one-shot=1", "", nil, 400, `{"message":"cannot have stream=true and one-shot=true"}`, ""},
		{"GET", "/containers/nope/stats", "", map[string]error{"Stats": noSuch("container: nope")}, 404, `{"message":"No such container: nope"}`, "Stats nope true false"},

		{"POST", "/containers/web/update", `{"Memory":5,"PidsLimit":-7}`, nil, 200, `{"Warnings":["careful"]}`, "Update web 5 0"},
		{"POST", "/v1.39/containers/web/update", `{"PidsLimit":9,"RestartPolicy":{"Name":"always"}}`, nil, 200, `{"Warnings":["careful"]}`, "Update web 0 same always"},
		{"POST", "/containers/web/update", `{"PidsLimit":9}`, map[string]error{"Update": notRunning}, 409, `{"message":"container web is not running"}`, "Update web 0 9"},
		{"POST", "/containers/web/update", `{bad`, nil, 400, `{"message":"invalid JSON: invalid character…`, ""},
		{"POST", "/containers/web/update", `{"Memory":"5"}`, nil, 400, `{"message":"invalid JSON: json: cannot…`, ""},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			r := newRig(t)
			r.con.fail = tt.fail
			status, _, body := r.do(tt.method, tt.path, tt.body)
			check(t, status, body, tt.status, tt.want)
			if got := r.con.last(); got != tt.call {
				t.Errorf("call %q, want %q", got, tt.call)
			}
		})
	}
}

// Samples come as they are made, and end with the client.
func TestStatsStream(t *testing.T) {
	r := newRig(t)
	resp, err := r.client.Get("http://d/containers/web/stats")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	for range 3 {
		var s apicontainer.StatsResponse
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &s) != nil || s.Name != "/web" {
			t.Fatalf("%q, %v", lines.Text(), lines.Err())
		}
	}
	resp.Body.Close()
	for end := time.Now().Add(5 * time.Second); !strings.HasPrefix(r.con.last(), "Stats ended"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("goes on for a client that is gone")
		}
	}
}
