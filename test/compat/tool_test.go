package compat

import (
	"net/http"
	"testing"
)

// The tool must find what differs and nothing else.

func TestFlattenHidesWhatIsNeverTheSame(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	a := &answer{status: 200, header: http.Header{"Content-Type": {"application/json"}, "Date": {"x"}},
		body: []byte(`{"Id":"` + id + `","Created":5,"At":"2026-01-02T03:04:05.6Z","Never":"0001-01-01T00:00:00Z","Dir":"/r/x","N":5,"L":[1],"E":{}}`)}
	want := map[string]string{
		"status": "200", "header Content-Type": "application/json", "body.Id": `"<id>"`, "body.Created": "<n>", "body.At": `"<time>"`,
		"body.Never": `"0001-01-01T00:00:00Z"`, "body.Dir": `"<root>/x"`, "body.N": "5", "body.L[0]": "1", "body.E": "{}",
	}
	if d := differences(want, flatten(a, [][2]string{{"/r", "<root>"}})); len(d) > 0 {
		t.Errorf("%v", d)
	}
}

func TestDifferences(t *testing.T) {
	d := differences(map[string]string{"a": "1", "b": "2", "c": "3"}, map[string]string{"a": "1", "b": "4", "d": "5"})
	want := []difference{{"b", "2", "4"}, {"c", "3", "(absent)"}, {"d", "(absent)", "5"}}
	if len(d) != len(want) {
		t.Fatalf("%v", d)
	}
	for i := range want {
		if d[i] != want[i] {
			t.Errorf("%v, not %v", d[i], want[i])
		}
	}
}

func TestAccepted(t *testing.T) {
	rules := []*rule{{request: "info/* GET *", places: "body.Plugins[*]*"}}
	if !accepted(rules, "info/1.41 GET /info", "body.Plugins[0].Log") || rules[0].used != 1 {
		t.Error("a rule that fits is not used")
	}
	if accepted(rules, "info/1.41 GET /info", "body.Name") || accepted(rules, "list/1.41 GET /info", "body.Plugins[0]") {
		t.Error("a rule is used where it does not fit")
	}
}

func TestParseScript(t *testing.T) {
	list, err := parseScript("# words\n-- one 1.24 1.41\n+X-A: b\nPOST $V/x?y={z} {\"a\":1}\n=id Id\nraw \"GET / HTTP/1.0\\r\\n\\r\\n\"\n-- two 1.41\nGET /\n")
	if err != nil || len(list) != 2 || len(list[0].versions) != 2 || len(list[0].requests) != 2 {
		t.Fatalf("%+v %v", list, err)
	}
	rq := list[0].requests[0]
	if rq.method != "POST" || rq.path != "$V/x?y={z}" || rq.body != `{"a":1}` || rq.header.Get("X-A") != "b" || rq.save["id"] != "Id" || rq.line != 4 {
		t.Errorf("%+v", rq)
	}
	if len(list[1].requests[0].header) != 0 {
		t.Error("a header is sent twice")
	}
	for _, bad := range []string{"GET /", "-- x\n", "-- x 1\n+y\n", "-- x 1\n=y z\n", "-- x 1\nGET nowhere\n", "-- x 1\nraw \"\n"} {
		if _, err := parseScript(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
