package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A file comes whole or is an error, in bounded time, with words for what was wrong.
func TestDownload(t *testing.T) {
	hold := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("asks for what it would have to unpack")
		}
		fmt.Fprint(w, "archive")
	})
	mux.HandleFunc("/chunks", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "arch")
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "ive")
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/file", http.StatusFound) })
	mux.HandleFunc("/circle", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/circle", http.StatusFound) })
	mux.HandleFunc("/private", func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, "archive")
	})
	for status, path := range map[int]string{400: "/bad", 403: "/forbidden", 500: "/broken", 204: "/empty"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, strings.Repeat("no. ", 1<<20))
		})
	}
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "archive")
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "archive")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) { <-hold })
	mux.HandleFunc("/stalls", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "arch")
		w.(http.Flusher).Flush()
		<-hold
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	defer close(hold)
	for _, c := range []struct {
		path string
		size int64
		is   func(error) bool // nil: the file comes
		says string
	}{
		{"/file", 7, nil, ""},
		{"/chunks", -1, nil, ""},
		{"/moved", 7, nil, ""},
		{"ann:secret@/private", 7, nil, ""},
		{"ann:wrong@/private", 0, errdefs.IsUnauthorized, "with status 401 Unauthorized: who are you?"},
		{"/nothing", 0, errdefs.IsNotFound, "/nothing with status 404 Not Found: 404 page not found"},
		{"/bad", 0, errdefs.IsInvalidArgument, "with status 400 Bad Request: no. no."},
		{"/forbidden", 0, errdefs.IsPermissionDenied, "with status 403 Forbidden: no."},
		{"/broken", 0, errdefs.IsUnavailable, "with status 500 Internal Server Error: no."},
		{"/empty", 0, errdefs.IsUnavailable, "with status 204 No Content"},
		{"/circle", 0, errdefs.IsUnavailable, "stopped after 10 redirects"},
		{"/short", 0, errdefs.IsUnavailable, "/short: the download broke off: unexpected EOF"},
		{"/cut", 0, errdefs.IsUnavailable, "/cut: the download broke off: unexpected EOF"},
		{"/silent", 0, errdefs.IsUnavailable, "timeout awaiting response headers"},
		{"/stalls", 0, errdefs.IsUnavailable, "/stalls: nothing came for 100ms"},
	} {
		t.Run(c.path, func(t *testing.T) {
			cl, err := New(Config{Stall: 5 * time.Second})
			if c.path == "/silent" || c.path == "/stalls" {
				cl, err = New(Config{Stall: 100 * time.Millisecond})
			}
			if err != nil {
				t.Fatal(err)
			}
			user, path, ok := strings.Cut(c.path, "@")
			if !ok {
				user, path = "", c.path
			}
			u, err := url.Parse(strings.Replace(s.URL, "//", "//"+map[bool]string{true: user + "@"}[ok], 1) + path)
			if err != nil {
				t.Fatal(err)
			}
			d, err := cl.Download(t.Context(), *u)
			var data []byte
			if err == nil {
				defer d.Close()
				if data, err = io.ReadAll(d); d.Size != c.size && c.is == nil {
					t.Errorf("size %d, want %d", d.Size, c.size)
				}
			}
			if c.is == nil {
				if err != nil || string(data) != "archive" {
					t.Errorf("%q, %v", data, err)
				}
				return
			}
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.says) || len(err.Error()) > maxPage+200 || strings.Contains(err.Error(), "wrong") {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// A client that goes ends the download.
func TestDownloadEnds(t *testing.T) {
	cl, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "arch")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	}))
	defer s.Close()
	u, _ := url.Parse(s.URL)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := cl.Download(ctx, *u)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := io.ReadFull(d, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := d.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the client has gone: %v", err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the server still sends")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
