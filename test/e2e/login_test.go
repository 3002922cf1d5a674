package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tokenRegistry asks for tokens, which it gives to ann with her password.
func tokenRegistry(t *testing.T) (host string) {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && user == "ann" && password == "secret":
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "t0ken"})
		case r.URL.Path == "/v2/" && r.Header.Get("Authorization") == "Bearer t0ken":
			w.WriteHeader(http.StatusOK)
		default:
			if r.URL.Path == "/v2/" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="here"`, s.URL))
			}
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestLogin(t *testing.T) {
	host, registry := sharedHost(t), tokenRegistry(t)
	for name, path := range clients() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			run := func(stdin string, args ...string) (string, error) {
				cmd := exec.Command(path, args...)
				cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+dir, "HOME="+dir)
				cmd.Stdin = strings.NewReader(stdin)
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			config := func() string {
				b, err := os.ReadFile(filepath.Join(dir, "config.json"))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				return string(b)
			}
			out, err := run("guess", "login", "-u", "ann", "--password-stdin", registry)
			if err == nil || !strings.Contains(out, "unauthorized: ") || strings.Contains(config(), registry) {
				t.Errorf("a wrong password: %v %s, kept %s", err, out, config())
			}
			out, err = run("secret\n", "login", "-u", "ann", "--password-stdin", "http://"+registry+"/v2/")
			if err != nil || !strings.Contains(out, "Login Succeeded") || !strings.Contains(out, "stored unencrypted in '"+dir+"/config.json'") {
				t.Errorf("the right one: %v %s", err, out)
			}
			if c := config(); !strings.Contains(c, `"`+registry+`"`) || !strings.Contains(c, `"auth": "YW5uOnNlY3JldA=="`) {
				t.Errorf("kept: %s", c)
			}
			if out, err = run("", "login", registry); err != nil || !strings.Contains(out, "Authenticating with existing credentials") || !strings.Contains(out, "Login Succeeded") {
				t.Errorf("with what is known: %v %s", err, out)
			}
			if out, err = run("", "logout", registry); err != nil || !strings.Contains(out, "Removing login credentials for "+registry) || strings.Contains(config(), registry) {
				t.Errorf("logout: %v %s, kept %s", err, out, config())
			}
			if out, err = run("", "login", registry); err == nil || !strings.Contains(out, "Cannot perform an interactive login from a non TTY device") {
				t.Errorf("without a terminal: %v %s", err, out)
			}
			if out, err = run("x", "login", "--password-stdin", registry); err == nil || !strings.Contains(out, "the --password-stdin option requires --username to be set") {
				t.Errorf("without a name: %v %s", err, out)
			}
			if out, err = run("", "login", "-u", "ann", "-p", "secret", "127.0.0.1:1"); err == nil || !strings.Contains(out, "127.0.0.1:1") {
				t.Errorf("nobody there: %v %s", err, out)
			}
		})
	}
}
