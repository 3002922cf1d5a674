// Command netserver answers what bench's network case asks: small HTTP answers on
// port 80, and on port 81 as many bytes as the client takes until it hangs up.
package main

import (
	"io"
	"log"
	"net"
	"net/http"
)

func main() {
	stream, err := net.Listen("tcp", ":81")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		block := make([]byte, 1<<20)
		for {
			c, err := stream.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go func() {
				defer c.Close()
				for {
					if _, err := c.Write(block); err != nil {
						return // the client has had enough
					}
				}
			}()
		}
	}()
	log.Fatal(http.ListenAndServe(":80", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello\n") // a client that has left is none of our business
	})))
}
