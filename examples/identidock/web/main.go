// Command web is identidock: it shows everybody the monster of their name. Monsters are
// drawn by another service, and kept in a store so that each is drawn once.
package main

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"escale.dev/escale/examples/resp"
)

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<title>Identidock</title>
<form method=POST>Hello <input name=name value="{{.Name}}"> <input type=submit value=submit></form>
<p>You look like a: <img src="/monster/{{.Hash}}">
<p>{{.Hits}} looks so far, this one by {{.Host}}
`))

const (
	store   = "redis:6379"
	painter = "http://dnmonster:8080/monster/"
)

func main() {
	salt := cmp.Or(os.Getenv("SALT"), "UNIQUE_SALT")
	host, _ := os.Hostname() // without it the page does not say who shows it
	http.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		name := cmp.Or(r.FormValue("name"), "Joe Bloggs")
		hits, err := resp.One(store, "INCR", "hits")
		if err != nil {
			http.Error(w, "redis: "+err.Error(), http.StatusBadGateway)
			return
		}
		_ = page.Execute(w, map[string]string{ // a reader that left
			"Name": name, "Hash": fmt.Sprintf("%x", sha256.Sum256([]byte(salt+name))), "Hits": hits, "Host": host,
		})
	})
	http.HandleFunc("GET /monster/{hash}", func(w http.ResponseWriter, r *http.Request) {
		image, from, err := monster(r.PathValue("hash"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "image/svg+xml")
		w.Header().Set("X-From", from)
		_, _ = io.WriteString(w, image)
	})
	log.Print("on port 9090")
	log.Fatal(http.ListenAndServe(":9090", nil))
}

// monster gives an image, and whether it was in the store.
func monster(hash string) (image, from string, err error) {
	image, err = resp.One(store, "GET", "monster:"+hash)
	if err == nil {
		return image, "redis", nil
	}
	if !errors.Is(err, resp.ErrNone) {
		return "", "", fmt.Errorf("redis: %w", err)
	}
	c := http.Client{Timeout: 5 * time.Second}
	res, err := c.Get(painter + hash + "?size=80")
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil || res.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("dnmonster: %s: %w", res.Status, err)
	}
	_, err = resp.One(store, "SET", "monster:"+hash, string(b))
	return string(b), "dnmonster", err
}
