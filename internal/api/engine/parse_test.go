package engine

import (
	"encoding/json"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"0":                              time.Unix(0, 0),
		"1700000000":                     time.Unix(1700000000, 0),
		"1700000000.000000001":           time.Unix(1700000000, 1),
		"1700000000.5":                   time.Unix(1700000000, 500000000),
		"1700000000.12345678999":         time.Unix(1700000000, 123456789),
		"-1":                             time.Unix(-1, 0),
		"99999999999999":                 time.Unix(maxSeconds, 0),
		"10m":                            now.Add(-10 * time.Minute),
		"1h30m":                          now.Add(-90 * time.Minute),
		"2013-01-02T00:00:01.5Z":         time.Date(2013, 1, 2, 0, 0, 1, 500000000, time.UTC),
		"2013-01-02T00:00:01+02:00":      time.Date(2013, 1, 1, 22, 0, 1, 0, time.UTC),
		"2013-01-02T03:04":               time.Date(2013, 1, 2, 3, 4, 0, 0, time.UTC),
		"2013-01-02T03":                  time.Date(2013, 1, 2, 3, 0, 0, 0, time.UTC),
		"2013-01-02":                     time.Date(2013, 1, 2, 0, 0, 0, 0, time.UTC),
		"2013-01-02Z":                    time.Date(2013, 1, 2, 0, 0, 0, 0, time.UTC),
		"2013-01-02T03:04:05.123456789Z": time.Date(2013, 1, 2, 3, 4, 5, 123456789, time.UTC),
	} {
		if got, err := parseTime(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "abc", "1.", "1.x", "1.-5", "2013-13-01", "1e9", ".5x"} {
		if got, err := parseTime(in, now); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestTruth(t *testing.T) {
	for in, want := range map[string]bool{"": false, "0": false, "no": false, "False": false, " none ": false, "1": true, "yes": true, "true": true, "x": true} {
		if truth(in) != want {
			t.Errorf("%q", in)
		}
	}
}

func TestParseFilters(t *testing.T) {
	for in, want := range map[string]filters{
		``:                                    {},
		`{}`:                                  {},
		`{"a":["x","y"]}`:                     {"a": {"x", "y"}},
		`{"a":{"y":true,"x":true,"z":false}}`: {"a": {"x", "y", "z"}},
		`{"a":[]}`:                            {},
		`null`:                                {},
	} {
		if got, err := parseFilters(in, []string{"a"}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
	for in, want := range map[string]string{`x`: "invalid filter", `[]`: "invalid filter", `{"a":1}`: "invalid filter", `{"b":["c"]}`: "invalid filter 'b'", `{"b":[]}`: "invalid filter 'b'"} {
		if _, err := parseFilters(in, []string{"a"}); err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestCutVersion(t *testing.T) {
	for path, want := range map[string][2]string{
		"/v1.41/info": {"1.41", "/info"}, "/v1/": {"1", "/"}, "/v1.2.3/x/y": {"1.2.3", "/x/y"},
		"/volumes": {}, "/v/info": {}, "/v1.41": {}, "/version": {}, "": {}, "/vv1/x": {},
	} {
		word, rest, ok := cutVersion(path)
		if word != want[0] || rest != want[1] || ok != (want[1] != "") {
			t.Errorf("%s: %q %q %v", path, word, rest, ok)
		}
	}
	for word, want := range map[string]string{
		"1.24": "1.24", "1.56": "1.56", "1.41.2": "1.41", "1.056": "1.56",
		"1.23": "", "1": "", "1.57": "", "99999999999999999999.1": "", "1.99999999999999999999": "", "..": "", "0.99999": "",
	} {
		v, err := negotiate(word)
		if (err == nil) != (want != "") || (err == nil && v.String() != want) {
			t.Errorf("%s: %v %v", word, v, err)
		}
	}
}

func TestListFilters(t *testing.T) {
	for query, want := range map[string]string{
		"":                               "web",
		"all=1":                          "web job fresh",
		"limit=2":                        "web job",
		"all=1&limit=1":                  "web",
		"all=0":                          "web",
		`all=1&filters={"name":["^/w"]}`: "web",
		`all=1&filters={"name":["e"]}`:   "web fresh",
		`all=1&filters={"name":["["]}`:   "",
		`all=1&filters={"id":["bbb"]}`:   "job",
		`filters={"status":["exited","created"]}`:            "job fresh",
		`filters={"status":{"running":true}}`:                "web",
		`all=1&filters={"health":["healthy"]}`:               "web",
		`all=1&filters={"health":["none"]}`:                  "job fresh",
		`all=1&filters={"exited":["3"]}`:                     "job",
		`all=1&filters={"exited":["0"]}`:                     "",
		`all=1&filters={"label":["k"]}`:                      "web",
		`all=1&filters={"label":["k=v","com.example"]}`:      "web",
		`all=1&filters={"label":["k=w"]}`:                    "",
		`all=1&filters={"annotation":["note=x"]}`:            "web",
		`all=1&filters={"is-task":["true"]}`:                 "job",
		`all=1&filters={"is-task":["0"]}`:                    "web fresh",
		`all=1&filters={"before":["web"]}`:                   "job fresh",
		`all=1&filters={"since":["fresh"]}`:                  "web job",
		`all=1&limit=1&filters={"before":["web"]}`:           "job",
		`all=1&filters={"before":["web"],"since":["fresh"]}`: "job",
		`all=1&filters={"volume":["vol"]}`:                   "fresh",
		`all=1&filters={"volume":["/data","/v"]}`:            "web fresh",
		`all=1&filters={"network":["none"]}`:                 "job",
		`all=1&filters={"network":["bridge"]}`:               "web fresh",
		`all=1&filters={"network":["eeee"]}`:                 "web",
		`all=1&filters={"publish":["8000-8100"]}`:            "web",
		`all=1&filters={"publish":["8099/udp"]}`:             "",
		`all=1&filters={"expose":["9090"]}`:                  "web",
		`all=1&filters={"ancestor":["debian"]}`:              "web job", // app is built upon debian
		`all=1&filters={"ancestor":["app:1"]}`:               "web",
		`all=1&filters={"ancestor":["nope"]}`:                "",
		`all=1&filters={"isolation":["default"]}`:            "web job fresh",
	} {
		r := newRig(t)
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		status, _, body := r.do("GET", "/containers/json?"+q.Encode(), "")
		var list []struct{ Names []string }
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range list {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
		if got := strings.Join(names, " "); status != 200 || got != want {
			t.Errorf("%s: %d %q, want %q", query, status, got, want)
		}
	}
}

func TestListFilterErrors(t *testing.T) {
	r := newRig(t)
	for f, want := range map[string]string{
		`{"foo":["bar"]}`:     `{"message":"invalid filter 'foo'"}`,
		`bad`:                 `{"message":"invalid filter"}`,
		`{"status":["bar"]}`:  `{"message":"invalid filter 'status=bar': invalid value for state (bar): must be one of created, running…`,
		`{"health":["bar"]}`:  `{"message":"invalid filter 'health=bar': invalid value for health (bar): must be one of none…`,
		`{"exited":["bar"]}`:  `{"message":"invalid filter 'exited=bar': not a number"}`,
		`{"is-task":["bar"]}`: `{"message":"invalid filter 'is-task=[bar]'"}`,
		`{"publish":["bar"]}`: `{"message":"error while looking up for publish bar: invalid start port 'bar'…`,
		`{"expose":["9-8"]}`:  `{"message":"error while looking up for expose 9-8: invalid port range…`,
	} {
		status, _, body := r.do("GET", "/containers/json?filters="+url.QueryEscape(f), "")
		check(t, status, body, 400, want)
	}
	status, _, body := r.do("GET", "/containers/json?filters="+url.QueryEscape(`{"before":["nope"]}`), "")
	check(t, status, body, 404, `{"message":"No such container: nope"}`)
	status, _, body = r.do("GET", "/containers/json?limit=x", "")
	check(t, status, body, 400, `{"message":"invalid value for limit…`)
}

func TestImageList(t *testing.T) {
	for query, want := range map[string]string{
		"":                                           "app:1 debian:latest -",
		`filters={"dangling":["true"]}`:              "-",
		`filters={"dangling":["0"]}`:                 "app:1 debian:latest",
		`filters={"label":["base"]}`:                 "debian:latest",
		`filters={"label!":["base=yes"]}`:            "app:1 -",
		`filters={"reference":["debian"]}`:           "debian:latest",
		`filters={"reference":["app:*"]}`:            "app:1",
		`filters={"reference":["*/*"]}`:              "registry.example/app:1",
		`filters={"before":["app:1"]}`:               "debian:latest -",
		`filters={"since":["debian"]}`:               "app:1",
		`filters={"until":["2026-11-21T06:00:00Z"]}`: "debian:latest -",
	} {
		r := newRig(t)
		q, _ := url.ParseQuery(query)
		status, _, body := r.do("GET", "/images/json?"+q.Encode(), "")
		var list []struct{ RepoTags []string }
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatalf("%s: %s", query, body)
		}
		var names []string
		for _, i := range list {
			names = append(names, append(i.RepoTags, "-")[max(0, len(i.RepoTags)-1)])
		}
		if got := strings.Join(names, " "); status != 200 || got != want {
			t.Errorf("%s: %d %q, want %q", query, status, got, want)
		}
	}
	r := newRig(t)
	_, _, old := r.do("GET", "/v1.40/images/json?filter=debian", "")
	_, _, now := r.do("GET", "/v1.41/images/json?filter=debian", "")
	if strings.Count(old, `"Id"`) != 1 || strings.Count(now, `"Id"`) != 3 {
		t.Errorf("%s\n%s", old, now)
	}
	r.img.images = append(r.img.images, r.img.images[1])
	_, _, shared := r.do("GET", "/images/json?shared-size=1", "")
	if strings.Count(shared, `"SharedSize":150`) != 2 || strings.Count(shared, `"SharedSize":100`) != 1 || strings.Count(shared, `"SharedSize":0`) != 1 {
		t.Error(shared)
	}
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "plain", `q"b\`, "a\nb\tc\rd", "\x00\x1f\x7f", "é \u2028\u2029 €", "bad \xff\xfe utf\xc3", "<&>"} {
		checkString(t, s)
	}
}

func checkString(t *testing.T, s string) {
	t.Helper()
	var got string
	b := appendString(nil, s)
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%q: %s: %v", s, b, err)
	}
	if want := strings.ToValidUTF8(s, "\ufffd"); utf8.ValidString(s) && got != want {
		t.Errorf("%q: %q", s, got)
	}
	if !utf8.Valid(b) {
		t.Errorf("%q: %q is not UTF-8", s, b)
	}
}

func FuzzString(f *testing.F) {
	f.Add("a\u2028\xff\"\\")
	f.Fuzz(func(t *testing.T, s string) { checkString(t, s) })
}

func FuzzFilters(f *testing.F) {
	for _, s := range []string{`{"label":["a=b"]}`, `{"label":{"a":true}}`, `{"x":null}`, `[1]`, `{"a":{"b":false}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFilters(s, nil)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Error(err)
			}
			return
		}
		for k, v := range got {
			if len(v) == 0 {
				t.Errorf("%q has no values", k)
			}
		}
		got.patterns("name")
		if _, err := got.time("until", at); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"1.5", "10m", "2013-01-02T03:04Z", "-9223372036854775808", "2562047h47m16.854775807s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := parseUnix(s); ok && math.Abs(float64(got.Unix())) > maxSeconds+1 {
			t.Errorf("%q: %v", s, got)
		}
		if _, err := parseTime(s, at); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

func FuzzCreate(f *testing.F) {
	for _, s := range []string{
		`{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[]},"Mounts":[{"Type":"bind","BindOptions":{}}]},"NetworkingConfig":{"EndpointsConfig":{"bridge":null}}}`,
		`{"MacAddress":"02:42:ac:11:00:02","HostConfig":null}`, `{"Cmd":"x"}`, `{"HostConfig":{"PidsLimit":-1,"KernelMemory":1}}`,
	} {
		f.Add([]byte(s), 24)
	}
	f.Fuzz(func(t *testing.T, b []byte, minor int) {
		ver := v(24 + (minor%33+33)%33)
		var body createBody
		if json.Unmarshal(b, &body) != nil {
			return
		}
		in, warnings, err := translateCreate(&body, ver)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Error(err)
			}
			return
		}
		if in.Config == nil || in.HostConfig == nil || in.Networking == nil || warnings == nil {
			t.Errorf("%+v", in)
		}
		if _, err := json.Marshal(in.HostConfig); err != nil {
			t.Error(err)
		}
	})
}

// Numbers of versions compare.
func TestVersionOrder(t *testing.T) {
	all := []version{v(24), v(30), v(41), v(56)}
	if !slices.IsSorted(all) || !v(41).before(42) || v(42).before(42) || newest.String() != "1.56" || oldest.String() != "1.24" {
		t.Error(all)
	}
}
