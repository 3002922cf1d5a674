package compat

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// section is a run of requests that begins with a clean engine:
//
//	-- name version...
//	METHOD path [body]     a request; $V is "/v" and the version, $IMAGE the image
//	+Header: value         a header of the next request; "-" takes it away
//	=name json.path        keeps a part of the last answer as $name
//	raw "bytes"            bytes as they are on a connection of their own
//	sleep 100ms
//
// The body @tar is a small archive.
type section struct {
	name     string
	versions []string
	requests []*request
}

type request struct {
	line   int
	text   string
	header http.Header
	method string
	path   string
	body   string
	raw    string
	pause  time.Duration
	save   map[string]string
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func readScript(t *testing.T, file string) []*section {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseScript(string(b))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return list
}

func parseScript(text string) ([]*section, error) {
	var list []*section
	header := http.Header{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "-- "); ok {
			f := strings.Fields(rest)
			if len(f) < 2 {
				return nil, fmt.Errorf("line %d: a section needs a name and versions", n)
			}
			list = append(list, &section{name: f[0], versions: f[1:]})
			continue
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("line %d: outside of a section", n)
		}
		sec := list[len(list)-1]
		switch line[0] {
		case '+':
			k, v, ok := strings.Cut(line[1:], ":")
			if !ok {
				return nil, fmt.Errorf("line %d: a header needs a colon", n)
			}
			header.Set(k, strings.TrimSpace(v))
			continue
		case '=':
			name, path, ok := strings.Cut(line[1:], " ")
			if !ok || len(sec.requests) == 0 {
				return nil, fmt.Errorf("line %d: nothing to keep", n)
			}
			sec.requests[len(sec.requests)-1].save[name] = path
			continue
		}
		rq, err := parseRequest(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		rq.line, rq.header = n, header
		header = http.Header{}
		sec.requests = append(sec.requests, rq)
	}
	return list, nil
}

func parseRequest(line string) (*request, error) {
	rq := &request{text: line, save: map[string]string{}}
	word, rest, _ := strings.Cut(line, " ")
	var err error
	switch word {
	case "raw":
		rq.raw, err = strconv.Unquote(rest)
		return rq, err
	case "sleep":
		rq.pause, err = time.ParseDuration(rest)
		return rq, err
	}
	rq.method = word
	rq.path, rq.body, _ = strings.Cut(rest, " ")
	if !strings.HasPrefix(rq.path, "/") && !strings.HasPrefix(rq.path, "$V") {
		return nil, errors.New("a request needs a path")
	}
	return rq, nil
}

// expand puts the variables in. Longer names win over shorter ones.
func expand(s string, vars map[string]string) string {
	return os.Expand(s, func(name string) string { return vars[name] })
}

// send puts the request to an engine.
func (rq *request) send(ctx context.Context, s *side) (*answer, error) {
	switch {
	case rq.pause > 0:
		select {
		case <-time.After(rq.pause):
		case <-ctx.Done():
		}
		return &answer{}, ctx.Err()
	case rq.raw != "":
		return sendRaw(ctx, s.api, expand(rq.raw, s.vars))
	}
	var body any
	if b := expand(rq.body, s.vars); b == "@tar" {
		body = bytes.NewReader(smallTar())
	} else if b != "" {
		body = strings.NewReader(b)
	}
	header := rq.header.Clone()
	if body != nil && header.Get("Content-Type") == "" && rq.body != "@tar" {
		header.Set("Content-Type", "application/json")
	}
	res, err := s.api.Ask(ctx, rq.method, expand(rq.path, s.vars), header, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return readAnswer(ctx, res)
}

// readAnswer reads a body to its end; what is cut off by ctx counts as an error.
func readAnswer(ctx context.Context, res *http.Response) (*answer, error) {
	defer context.AfterFunc(ctx, func() { res.Body.Close() })()
	b, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if ctx.Err() != nil {
		return nil, fmt.Errorf("status %d, then no end: %w", res.StatusCode, ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("status %d, then: %w", res.StatusCode, err)
	}
	return &answer{status: res.StatusCode, header: res.Header, body: b}, nil
}

func sendRaw(ctx context.Context, api *harness.API, text string) (*answer, error) {
	conn, err := api.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, text); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return readAnswer(ctx, res)
}

// smallTar is an archive with a file and a folder.
func smallTar() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1700000000, 0)
	// Writing to memory does not fail.
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o750, ModTime: at})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o640, Size: 6, ModTime: at})
	_, _ = w.Write([]byte("hello\n"))
	_ = w.Close()
	return b.Bytes()
}
