// Command vote asks everybody for a vote, a or b, and puts it into a queue.
package main

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"html/template"
	"log"
	"net/http"
	"os"
	"time"

	"escale.dev/escale/examples/resp"
)

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<title>{{.A}} vs {{.B}}!</title>
<form method=POST><button name=vote value=a>{{.A}}</button> <button name=vote value=b>{{.B}}</button></form>
<p>{{with .Vote}}Your vote is {{.}}. {{end}}Processed by container ID {{.Host}}
`))

const queue = "redis:6379"

func main() {
	if len(os.Args) == 2 && os.Args[1] == "health" {
		c := http.Client{Timeout: time.Second}
		if res, err := c.Get("http://127.0.0.1/"); err != nil || res.StatusCode != http.StatusOK {
			log.Fatal(res, err)
		}
		return
	}
	a, b := cmp.Or(os.Getenv("OPTION_A"), "Cats"), cmp.Or(os.Getenv("OPTION_B"), "Dogs")
	host, _ := os.Hostname() // without it the page does not say who shows it
	http.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		voter := rand.Text()
		if c, err := r.Cookie("voter_id"); err == nil {
			voter = c.Value
		}
		vote := ""
		if r.Method == http.MethodPost {
			vote = r.FormValue("vote")
			if vote != "a" && vote != "b" {
				http.Error(w, "vote for a or b", http.StatusBadRequest)
				return
			}
			text, err := json.Marshal(map[string]string{"voter_id": voter, "vote": vote})
			if err == nil {
				_, err = resp.One(queue, "RPUSH", "votes", string(text))
			}
			if err != nil {
				http.Error(w, "redis: "+err.Error(), http.StatusBadGateway)
				return
			}
		}
		http.SetCookie(w, &http.Cookie{Name: "voter_id", Value: voter, HttpOnly: true, SameSite: http.SameSiteStrictMode})
		_ = page.Execute(w, map[string]string{"A": a, "B": b, "Vote": map[string]string{"a": a, "b": b}[vote], "Host": host}) // a reader that left
	})
	log.Print("on port 80")
	log.Fatal(http.ListenAndServe(":80", nil))
}
