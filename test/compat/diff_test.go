package compat

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// headers are those that clients look at.
var headers = []string{"Content-Type", "Docker-Experimental", "Ostype", "Connection", "Upgrade", "Location", "Cache-Control", "Pragma", "Swarm", "Builder-Version"}

// Parts of answers that are never the same twice.
var (
	reSum   = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	reID    = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	reShort = regexp.MustCompile(`\b[0-9a-f]{12}\b`)
	reTime  = regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	reMAC   = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	reAgo   = regexp.MustCompile(`\b(Less than a|\d+|About a) (second|minute)s?\b`)
	reIP    = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)
)

const zeroTime = "0001-01-01T00:00:00Z"

// settle puts words in the place of what is never the same twice.
func settle(s string, hide [][2]string) string {
	for _, h := range hide {
		s = strings.ReplaceAll(s, h[0], h[1])
	}
	s = reSum.ReplaceAllString(s, "<sum>")
	s = reID.ReplaceAllString(s, "<id>")
	s = reShort.ReplaceAllString(s, "<short>")
	s = reTime.ReplaceAllStringFunc(s, func(at string) string {
		if at == zeroTime {
			return at
		}
		return "<time>"
	})
	s = reAgo.ReplaceAllString(s, "<while>")
	s = reMAC.ReplaceAllString(s, "<mac>")
	return reIP.ReplaceAllStringFunc(s, func(ip string) string {
		if ip == "0.0.0.0" || strings.HasPrefix(ip, "127.") {
			return ip
		}
		return "<ip>"
	})
}

// flatten turns an answer into lines: "status", "header Content-Type", and for
// each leaf of the body its place.
func flatten(a *answer, hide [][2]string) map[string]string {
	out := map[string]string{"status": strconv.Itoa(a.status)}
	for _, h := range headers {
		if v := a.header.Get(h); v != "" {
			out["header "+h] = settle(v, hide)
		}
	}
	if st := a.header.Get("X-Docker-Container-Path-Stat"); st != "" {
		b, err := base64.StdEncoding.DecodeString(st)
		var v any
		if err != nil || json.Unmarshal(b, &v) != nil {
			v = st
		}
		leaves(out, "stat", v, hide)
	}
	switch media := a.header.Get("Content-Type"); {
	case len(a.body) == 0:
	case strings.HasPrefix(media, "application/x-tar"), a.body[0] != '{' && isTar(a.body):
		leaves(out, "tar", tarNames(a.body), hide)
	default:
		dec := json.NewDecoder(bytes.NewReader(a.body))
		var docs []any
		for {
			var v any
			err := dec.Decode(&v)
			if err == io.EOF {
				break
			}
			if err != nil {
				docs = []any{string(a.body)}
				break
			}
			docs = append(docs, v)
		}
		if len(docs) == 1 {
			leaves(out, "body", docs[0], hide)
		} else {
			leaves(out, "body", docs, hide)
		}
	}
	return out
}

// leaves flattens a value. Numbers that tell a time, a size or a process are
// only compared in being there.
func leaves(out map[string]string, at string, v any, hide [][2]string) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			out[at] = "{}"
		}
		for k, x := range v {
			leaves(out, at+"."+settle(k, hide), x, hide)
		}
	case []any:
		if len(v) == 0 {
			out[at] = "[]"
		}
		for i, x := range v {
			leaves(out, at+"["+strconv.Itoa(i)+"]", x, hide)
		}
	case string:
		out[at] = strconv.Quote(settle(v, hide))
	case float64:
		out[at] = strconv.FormatFloat(v, 'f', -1, 64)
		switch key := at[strings.LastIndexByte(at, '.')+1:]; key {
		case "Created", "time", "timeNano", "Pid", "Size", "SizeRw", "SizeRootFs", "VirtualSize", "SpaceReclaimed", "mtime":
			if v > 0 {
				out[at] = "<n>"
			}
		}
	default:
		out[at] = fmt.Sprint(v) // true, false, <nil>
	}
}

func isTar(b []byte) bool { return len(b) > 262 && string(b[257:262]) == "ustar" }

func tarNames(b []byte) []any {
	var names []any
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			return append(names, err.Error())
		}
		names = append(names, fmt.Sprintf("%c %o %d %s %s", h.Typeflag, h.Mode, h.Size, h.Name, h.Linkname))
	}
}

// difference is a place where two answers differ.
type difference struct{ path, want, got string }

func differences(want, got map[string]string) []difference {
	var list []difference
	for k, w := range want {
		if g, ok := got[k]; !ok {
			list = append(list, difference{k, w, "(absent)"})
		} else if g != w {
			list = append(list, difference{k, w, g})
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			list = append(list, difference{k, "(absent)", g})
		}
	}
	slices.SortFunc(list, func(a, b difference) int { return strings.Compare(a.path, b.path) })
	return list
}

// rule is a difference that is meant: "requests | places | why". Both patterns
// are those of path.Match over the whole, in which * also covers slashes.
type rule struct {
	line            string
	request, places string
	used            int
}

func readRules(t *testing.T, file string) []*rule {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []*rule
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 3 || strings.TrimSpace(f[2]) == "" {
			t.Fatalf("%s: not requests, places and a reason: %s", file, line)
		}
		list = append(list, &rule{line: line, request: strings.TrimSpace(f[0]), places: strings.TrimSpace(f[1])})
	}
	return list
}

func accepted(rules []*rule, request, place string) bool {
	for _, r := range rules {
		if glob(r.request, request) && glob(r.places, place) {
			r.used++
			return true
		}
	}
	return false
}

// glob matches like path.Match; slashes and brackets are letters like others.
func glob(pattern, s string) bool {
	plain := strings.NewReplacer("/", "\x00", "[", "\x01", "]", "\x02", `\`, "\x03")
	ok, err := path.Match(plain.Replace(pattern), plain.Replace(s))
	return err == nil && ok
}

// lookUp follows "a.0.b" into a value.
func lookUp(v any, place string) string {
	for key := range strings.SplitSeq(place, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return ""
			}
			v = x[i]
		}
	}
	return fmt.Sprint(v)
}
