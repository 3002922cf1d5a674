// Command dnmonster draws a little monster for each name: GET /monster/NAME?size=80.
package main

import (
	"crypto/sha256"
	"fmt"
	"log"
	"net/http"
	"strconv"
	"strings"
)

func main() {
	http.HandleFunc("GET /monster/{name}", func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.Atoi(r.FormValue("size"))
		if err != nil || size < 16 || size > 1024 {
			size = 80
		}
		w.Header().Set("Content-Type", "image/svg+xml")
		fmt.Fprint(w, draw(r.PathValue("name"), size))
	})
	log.Print("on port 8080")
	log.Fatal(http.ListenAndServe(":8080", nil))
}

// draw makes a monster of five by five squares, as alike on both sides as monsters are,
// and with two eyes.
func draw(name string, size int) string {
	sum := sha256.Sum256([]byte(name))
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 5 5"><g fill="hsl(%d,70%%,45%%)">`, size, size, int(sum[0])*360/256)
	for y := range 5 {
		for x := range 3 {
			if sum[1+3*y+x]%2 == 0 {
				continue
			}
			for _, at := range []int{x, 4 - x} {
				fmt.Fprintf(&b, `<rect x="%d" y="%d" width="1" height="1"/>`, at, y)
			}
		}
	}
	b.WriteString(`</g><circle cx="1.5" cy="1.5" r=".4"/><circle cx="3.5" cy="1.5" r=".4"/></svg>`)
	return b.String()
}
