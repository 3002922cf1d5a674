// Command web shows a page on which every click leaves a mark, for all who look at
// it. The marks are in a store that speaks Redis's protocol, found by its name.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"escale.dev/escale/examples/resp"
)

const page = `<!DOCTYPE html>
<title>moby counter</title>
<style>body{margin:0;height:100vh;background:#eaf4fb;font:16px sans-serif}i{position:absolute;width:24px;height:24px;margin:-12px;border-radius:50%;background:#1d63ed}</style>
<p>Click: <b id=n>0</b> so far, shown by HOST
<script>
async function show(){const l=await(await fetch('/clicks')).json();n.textContent=l.length;document.querySelectorAll('i').forEach(e=>e.remove());for(const c of l){const e=document.createElement('i');e.style.left=c.x+'px';e.style.top=c.y+'px';document.body.append(e)}}
document.onclick=async e=>{await fetch('/clicks',{method:'POST',body:JSON.stringify({x:e.pageX,y:e.pageY})});show()}
show();setInterval(show,1000)
</script>
`

// click is a mark on the page.
type click struct{ X, Y int }

func (c click) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"x":%d,"y":%d}`, c.X, c.Y), nil
}

func main() {
	store := net.JoinHostPort(cmp.Or(os.Getenv("REDIS_HOST"), "redis"), cmp.Or(os.Getenv("REDIS_PORT"), "6379"))
	host, _ := os.Hostname() // without it the page does not say who shows it
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Replace(page, "HOST", host, 1)) // a reader that left
	})
	http.HandleFunc("GET /clicks", func(w http.ResponseWriter, _ *http.Request) {
		list, err := resp.Do(store, "LRANGE", "clicks", "0", "-1")
		answer(w, list, err)
	})
	http.HandleFunc("POST /clicks", func(w http.ResponseWriter, r *http.Request) {
		var c click
		if err := json.NewDecoder(io.LimitReader(r.Body, 1000)).Decode(&c); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, err := resp.Do(store, "RPUSH", "clicks", fmt.Sprintf("%d %d", c.X, c.Y))
		answer(w, nil, err)
	})
	log.Printf("on port 80, with the store %s", store)
	log.Fatal(http.ListenAndServe(":80", nil))
}

// answer shows a list of clicks.
func answer(w http.ResponseWriter, list []string, err error) {
	if err != nil {
		http.Error(w, "store: "+err.Error(), http.StatusBadGateway)
		return
	}
	clicks := []click{}
	for _, s := range list {
		var c click
		if _, err := fmt.Sscan(s, &c.X, &c.Y); err == nil {
			clicks = append(clicks, c)
		}
	}
	_ = json.NewEncoder(w).Encode(clicks) // a reader that left
}
