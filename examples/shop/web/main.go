// Command web is the shop's front: what there is to buy, and buying. It says which
// replica and which version has answered. At its stop signal it drains: what comes in
// the next moment is still served, what is under way comes to its end.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"escale.dev/escale/examples/resp"
)

const (
	store  = "store:6379"
	goods  = "/etc/shop/goods"
	secret = "/run/secrets/seal"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "health" {
		c := http.Client{Timeout: time.Second}
		res, err := c.Get("http://127.0.0.1/health")
		if err != nil || res.StatusCode != http.StatusOK {
			log.Fatal(res, err)
		}
		return
	}
	if err := serve(); err != nil {
		log.Fatal(err)
	}
}

func serve() error {
	s := shop{version: cmp.Or(os.Getenv("VERSION"), "0"), prices: map[string]string{}}
	s.host, _ = os.Hostname() // without it nobody knows who answered
	var err error
	if s.drain, err = time.ParseDuration(cmp.Or(os.Getenv("DRAIN"), "500ms")); err != nil {
		return err
	}
	f, err := os.Open(goods)
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, price, ok := strings.Cut(lines.Text(), " "); ok {
			s.prices[name] = price
			s.list = append(s.list, lines.Text())
		}
	}
	if s.seal, err = os.ReadFile(secret); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.show)
	mux.HandleFunc("GET /who", s.who)
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("POST /buy/{name}", s.buy)
	mux.HandleFunc("GET /sold", s.sold)
	srv := &http.Server{Addr: ":80", Handler: mux}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe() }()
	log.Printf("version %s on port 80", s.version)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	srv.SetKeepAlivesEnabled(false)
	time.Sleep(s.drain)
	return srv.Shutdown(context.Background())
}

// shop is what a replica knows.
type shop struct {
	version, host string
	list          []string
	prices        map[string]string
	seal          []byte
	drain         time.Duration // for those that were on their way at the stop signal
}

func (s *shop) show(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "%s, version %s, answered by %s\n", map[bool]string{true: "THE HARBOUR SHOP", false: "The harbour shop"}[s.version >= "2"], s.version, s.host)
	for _, line := range s.list {
		fmt.Fprintln(w, " ", line)
	}
}

// who is for those who count answers.
func (s *shop) who(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "version %s, %s\n", s.version, s.host)
}

func (s *shop) health(w http.ResponseWriter, _ *http.Request) {
	if _, err := resp.One(store, "PING"); err != nil {
		http.Error(w, "store: "+err.Error(), http.StatusServiceUnavailable)
	}
}

// buy sells one piece, with a receipt that nobody else can write.
func (s *shop) buy(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	price, ok := s.prices[name]
	if !ok {
		http.Error(w, "we have no "+name, http.StatusNotFound)
		return
	}
	n, err := resp.One(store, "INCR", "sold")
	if err != nil {
		http.Error(w, "store: "+err.Error(), http.StatusBadGateway)
		return
	}
	m := hmac.New(sha256.New, s.seal)
	fmt.Fprint(m, n, name, price)
	fmt.Fprintf(w, "no. %s: %s for %s, sealed %x\n", n, name, price, m.Sum(nil)[:6])
}

func (s *shop) sold(w http.ResponseWriter, _ *http.Request) {
	n, err := resp.One(store, "GET", "sold")
	switch {
	case errors.Is(err, resp.ErrNone):
		n = "0"
	case err != nil:
		http.Error(w, "store: "+err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprintln(w, n)
}
