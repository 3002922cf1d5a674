package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/registry"
)

// endlessly writes until the client has had enough; it tells how much that was.
func endlessly(w io.Writer, begin string) (sent int64) {
	n, err := io.WriteString(w, begin)
	sent = int64(n)
	block := []byte(strings.Repeat("a", 1<<20))
	for err == nil && sent < 10<<30 {
		n, err = w.Write(block)
		sent += int64(n)
	}
	return sent
}

// A registry that hangs, sends its client round in circles, sends gigabytes or lies about its
// tokens costs a login that fails, in words, soon and without memory.
func TestLoginAtHostileRegistries(t *testing.T) {
	for _, c := range []struct {
		name   string
		root   http.HandlerFunc // of /v2/; nil: asks for a token
		token  http.HandlerFunc
		auth   registry.AuthConfig
		want   string
		within time.Duration // the caller's patience
	}{
		{name: "hangs", root: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, within: 300 * time.Millisecond, want: "context deadline exceeded"},
		{name: "hangs giving a token", token: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, within: 300 * time.Millisecond, want: "context deadline exceeded"},
		{name: "in circles", root: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v2/", http.StatusFound) }, want: "redirects"},
		{name: "tokens in circles", token: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/token", http.StatusTemporaryRedirect)
		}, want: "redirects"},
		{name: "gigabytes", root: func(w http.ResponseWriter, _ *http.Request) { endlessly(w, "") }, want: ""},
		{name: "gigabytes of refusal", root: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			endlessly(w, "")
		}, want: "418"},
		{name: "a token of gigabytes", token: func(w http.ResponseWriter, _ *http.Request) { endlessly(w, `{"token":"`) }, want: "more than"},
		{name: "a new token of gigabytes", auth: registry.AuthConfig{IdentityToken: "i"}, token: func(w http.ResponseWriter, _ *http.Request) { endlessly(w, `{"access_token":"`) }, want: "more than"},
		{name: "a token in lines", token: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"a\r\nX-Evil: 1"}`) }, want: "invalid header"},
		{name: "a token that is none", token: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":["a"]}`) }, want: "unmarshal"},
		{name: "no token", token: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) }, want: "token"},
		{name: "a token it refuses", token: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"a"}`) }, want: "401"},
		{name: "hangs up", root: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, want: "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mux := http.NewServeMux()
			s := httptest.NewServer(mux)
			defer s.Close()
			if c.root == nil {
				c.root = func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="here"`, s.URL))
					w.WriteHeader(http.StatusUnauthorized)
				}
			}
			mux.HandleFunc("/v2/", c.root)
			if c.token != nil {
				mux.HandleFunc("/token", c.token)
			}
			cl, err := New(Config{UserAgent: "test"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if c.within > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), c.within)
			}
			defer cancel()
			if c.auth == (registry.AuthConfig{}) {
				c.auth = registry.AuthConfig{Username: "ann", Password: "secret"}
			}
			c.auth.ServerAddress = strings.TrimPrefix(s.URL, "http://")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = cl.Login(ctx, c.auth)
			runtime.ReadMemStats(&after)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 100_000):
				t.Errorf("%.500v, want %s", err, c.want)
			}
			if c.within == 0 && errors.Is(err, context.DeadlineExceeded) {
				t.Error("it took too long")
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("it took %d MB", grown>>20)
			}
		})
	}
}
