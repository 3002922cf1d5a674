// Command load opens new connections to a page at a steady rate, one for each request,
// and counts who answered and what failed:
//
//	load -rate 1000 -for 10s http://127.0.0.1:8080/who
//
// It ends early, and counts on what is under way, at SIGINT or SIGTERM. Exit code 1 when
// a request failed. With -v each failure is told of.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	rate := flag.Int("rate", 100, "requests a second, each by a connection of its own")
	during := flag.Duration("for", 10*time.Second, "how long")
	timeout := flag.Duration("timeout", 10*time.Second, "of a request")
	verbose := flag.Bool("v", false, "tell of each failure")
	flag.Parse()
	if flag.NArg() != 1 || *rate < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *during)
	defer cancel()
	c := count{timeout: *timeout, answers: map[string]int{}, failures: map[string]int{}, verbose: *verbose}
	begun := time.Now()
	c.send(ctx, *rate, flag.Arg(0))
	c.report(time.Since(begun))
	if len(c.failures) > 0 {
		os.Exit(1)
	}
}

// count is what came back.
type count struct {
	verbose  bool
	timeout  time.Duration
	mu       sync.Mutex
	answers  map[string]int
	failures map[string]int
	took     []time.Duration
}

// send asks at the rate until ctx ends, and waits for what is under way then.
func (c *count) send(ctx context.Context, rate int, url string) {
	client := &http.Client{
		Timeout: c.timeout, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var group sync.WaitGroup
	defer group.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for sent := 0; ; {
		// What the machine was too slow for is sent later, so that the rate is kept.
		for due := int(time.Since(begun).Seconds() * float64(rate)); sent < due; sent++ {
			group.Go(func() { c.ask(client, url) })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *count) ask(client *http.Client, url string) {
	begun := time.Now()
	res, err := client.Get(url)
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(res.Body, 1<<16))
		res.Body.Close()
	}
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", res.Status)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, time.Since(begun))
	if err != nil {
		words := strings.Split(err.Error(), ": ")
		c.failures[words[len(words)-1]]++
		if c.verbose {
			fmt.Println(time.Now().Format("15:04:05.000"), err)
		}
		return
	}
	first, _, _ := strings.Cut(string(body), "\n")
	c.answers[first]++
}

// report writes what was counted.
func (c *count) report(took time.Duration) {
	slices.Sort(c.took)
	failed := 0
	for _, n := range c.failures {
		failed += n
	}
	at := func(share float64) time.Duration {
		if len(c.took) == 0 {
			return 0
		}
		return c.took[int(share*float64(len(c.took)-1))].Round(100 * time.Microsecond)
	}
	fmt.Printf("%d requests in %.1f s, %d failed; half took %s at most, 99 of 100 %s, the slowest %s\n", len(c.took), took.Seconds(), failed, at(0.5), at(0.99), at(1))
	for _, who := range slices.Sorted(maps.Keys(c.answers)) {
		fmt.Printf("%7d  %s\n", c.answers[who], who)
	}
	for _, why := range slices.Sorted(maps.Keys(c.failures)) {
		fmt.Printf("%7d  failed: %s\n", c.failures[why], why)
	}
}
