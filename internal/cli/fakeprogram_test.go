package cli_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// program is what a container does: its command's first word says which.
func program(c *fakeContainer, out, errw io.Writer) int {
	word := ""
	if len(c.cmd) > 0 {
		word = c.cmd[0]
	}
	codes := map[string]int{"TERM": 143, "INT": 130, "KILL": 137, "HUP": 129, "QUIT": 131}
	switch word {
	case "echo":
		fmt.Fprintln(out, strings.Join(c.cmd[1:], " "))
	case "both":
		fmt.Fprintln(out, "out")
		fmt.Fprintln(errw, "err")
	case "exit":
		n, _ := strconv.Atoi(c.cmd[1])
		return n
	case "cat":
		io.Copy(out, c.stdin)
	case "sleep":
		return codes[<-c.signals]
	case "signals":
		fmt.Fprintln(out, "ready")
		for s := range c.signals {
			fmt.Fprintln(out, "got", s)
			if s == "TERM" || s == "KILL" {
				return 7
			}
		}
	case "terminal":
		return terminal(c, out)
	}
	return 0
}

// terminal shows what comes from the other side's terminal: sizes, and keys as
// numbers. The key q ends it with 5.
func terminal(c *fakeContainer, out io.Writer) int {
	fmt.Fprint(out, "ready\r\n")
	keys, in := make(chan byte), c.stdin
	go func() {
		b := make([]byte, 1)
		for {
			if _, err := in.Read(b); err != nil {
				return
			}
			keys <- b[0]
		}
	}()
	for {
		select {
		case s := <-c.sizes:
			fmt.Fprintf(out, "size %s\r\n", s)
		case k := <-keys:
			fmt.Fprintf(out, "key %d\r\n", k)
			if k == 'q' {
				return 5
			}
		case s := <-c.signals:
			fmt.Fprintf(out, "got %s\r\n", s)
			if s == "TERM" || s == "KILL" {
				return 7
			}
		}
	}
}

func (f *fakeEngine) serveImages(w http.ResponseWriter, r *http.Request, p []string) {
	switch {
	case p[0] == "json":
		answer(w, 200, []any{
			map[string]any{"Id": "sha256:0123456789abcdef0123", "RepoTags": []string{"debian:latest", "debian:12"}, "RepoDigests": []string{}, "Created": 1700000000, "Size": 123456789, "SharedSize": -1, "Containers": -1},
			map[string]any{"Id": "sha256:fedcba9876543210fedc", "RepoTags": []string{}, "RepoDigests": []string{}, "Created": 1700000000, "Size": 0},
		})
	case p[0] == "load":
		n, _ := io.Copy(io.Discard, r.Body)
		if n == 0 {
			refuse(w, 400, "unexpected EOF")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		if r.URL.Query().Get("quiet") != "1" {
			e.Encode(map[string]any{"id": "aaa", "status": "Loading layer", "progressDetail": map[string]int{"current": 5, "total": 10}})
		}
		e.Encode(map[string]any{"stream": "Loaded image: debian:latest\n"})
	case p[0] == "create" && r.URL.Query().Get("fromSrc") != "":
		n, _ := io.Copy(io.Discard, r.Body)
		json.NewEncoder(w).Encode(map[string]any{"status": fmt.Sprintf("sha256:%d bytes", n)})
	case p[0] == "create" && strings.HasSuffix(r.URL.Query().Get("fromImage"), "/denied"):
		refuse(w, 404, "pull access denied for denied, repository does not exist or may require 'docker login'")
	case p[0] == "create":
		refuse(w, 500, `Get "https://registry/v2/": dial tcp: lookup registry: no such host`)
	case p[0] == "get":
		if n := r.URL.Query()["names"]; n[0] != "debian" {
			refuse(w, 404, "No such image: %s", n[0])
			return
		}
		fmt.Fprintln(w, "the archive")
	case p[0] == "prune":
		answer(w, 200, map[string]any{"ImagesDeleted": []any{map[string]string{"Untagged": "a:b"}, map[string]string{"Deleted": "sha256:1"}}, "SpaceReclaimed": 10})
	case r.Method == "DELETE":
		if p[0] != "debian" {
			refuse(w, 404, "No such image: %s", p[0])
			return
		}
		answer(w, 200, []any{map[string]string{"Untagged": "debian:latest"}, map[string]string{"Deleted": "sha256:0123"}})
	case len(p) > 1 && p[1] == "tag":
		w.WriteHeader(201)
	case len(p) > 1 && p[1] == "history":
		answer(w, 200, []any{map[string]any{"Id": "sha256:0123456789abcdef0123", "Created": 1700000000, "CreatedBy": "/bin/sh -c #(nop)\tCMD [\"bash\"] and much more behind it", "Size": 1234567, "Comment": "c"},
			map[string]any{"Id": "<missing>", "Created": 0, "CreatedBy": "", "Size": 0}})
	case len(p) > 1 && p[1] == "json" && p[0] == "debian":
		answer(w, 200, map[string]any{"Id": "sha256:0123", "RepoTags": []string{"debian:latest"}, "Config": map[string]any{"Cmd": []string{"bash"}}})
	default:
		refuse(w, 404, "No such image: %s", p[0])
	}
}
