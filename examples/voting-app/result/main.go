// Command result shows how many have voted for what: a page, and /votes as JSON.
package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http"

	"escale.dev/escale/examples/resp"
)

const page = `<!DOCTYPE html>
<title>Result</title>
<p>Cats <b id=a></b> – Dogs <b id=b></b>
<script>
async function show(){const v=await(await fetch('/votes')).json();a.textContent=v.a;b.textContent=v.b}
show();setInterval(show,1000)
</script>
`

func main() {
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, page) })
	http.HandleFunc("GET /votes", func(w http.ResponseWriter, _ *http.Request) {
		list, err := resp.Do("db:6379", "HGETALL", "votes")
		if err != nil {
			http.Error(w, "db: "+err.Error(), http.StatusBadGateway)
			return
		}
		n := map[string]int{"a": 0, "b": 0}
		for i := 1; i < len(list); i += 2 {
			n[list[i]]++
		}
		_ = json.NewEncoder(w).Encode(n) // a reader that left
	})
	log.Print("on port 80")
	log.Fatal(http.ListenAndServe(":80", nil))
}
