// Command whoami says which container answers, of which version it is, and what its secret is.
// When it is to end it serves what comes for a moment more, and then ends what it has begun.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// The times for those who are on their way, and for those who are being served.
const (
	lingers = 500 * time.Millisecond
	ends    = 3 * time.Second
)

func main() {
	host, err := os.Hostname()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host) })
	http.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("VERSION")) })
	http.HandleFunc("GET /secret", func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile("/run/secrets/course_key")
		if err != nil {
			http.Error(w, "no secret", http.StatusNotFound)
			return
		}
		fmt.Fprintln(w, string(text))
	})
	stop, done := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer done()
	server := &http.Server{Addr: ":80", ReadHeaderTimeout: ends}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-stop.Done()
		time.Sleep(lingers)
		ctx, cancel := context.WithTimeout(context.Background(), ends)
		defer cancel()
		_ = server.Shutdown(ctx) // who is not done by then is cut off
	}()
	fmt.Println("whoami: version", os.Getenv("VERSION"), "on", host)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}
