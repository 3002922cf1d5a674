package network_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	apinetwork "github.com/moby/moby/api/types/network"
)

// numbered is a request of a container of its own, with a published port if asked.
func numbered(i int, publish bool) network.Request {
	r := network.Request{ContainerID: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("c%d", i)}
	if publish {
		b := apinetwork.PortBinding{HostIP: netip.IPv4Unspecified(), HostPort: fmt.Sprint(1024 + i%30000)}
		r.Bindings = apinetwork.PortMap{apinetwork.MustParsePort("80"): {b}}
	}
	return r
}

// median sorts d.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkSetup is a container's network from nothing to published, among
// others; how long giving it back takes is reported beside it.
func BenchmarkSetup(b *testing.B) {
	for _, c := range []struct {
		among   int
		publish bool
	}{{0, false}, {0, true}, {100, true}, {1000, true}} {
		b.Run(strings.ReplaceAll(fmt.Sprintf("among=%d/published=%v", c.among, c.publish), " ", ""), func(b *testing.B) {
			h := newHost(b)
			for i := range c.among {
				s, err := h.m.Setup(b.Context(), numbered(20000+i, true))
				if err != nil {
					b.Fatal(err)
				}
				for _, f := range s.Held {
					f.Close()
				}
			}
			var unpublish, teardown []time.Duration
			i := 0
			for b.Loop() {
				i++
				s, err := h.m.Setup(b.Context(), numbered(i, c.publish))
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, f := range s.Held {
					f.Close()
				}
				start := time.Now()
				if err := h.m.Unpublish(b.Context(), s.ID, s.Endpoints); err != nil {
					b.Fatal(err)
				}
				unpublish = append(unpublish, time.Since(start))
				start = time.Now()
				if err := h.m.Teardown(b.Context(), s.ID, s.Endpoints); err != nil {
					b.Fatal(err)
				}
				teardown = append(teardown, time.Since(start))
				b.StartTimer()
			}
			b.ReportMetric(float64(median(unpublish).Microseconds()), "µs/unpublish")
			b.ReportMetric(float64(median(teardown).Microseconds()), "µs/teardown")
		})
	}
}

// BenchmarkFirstPacket is how long after Setup the first connection to a
// container stands: a port of the bridge that is not ready yet costs a second.
func BenchmarkFirstPacket(b *testing.B) {
	h := newHost(b)
	var waits []time.Duration
	i := 0
	for b.Loop() {
		i++
		s, err := h.m.Setup(b.Context(), numbered(i, false))
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		_, err = h.here().ask("tcp", s.Endpoints[0].IP+":80", patience) // refused: nobody listens
		waits = append(waits, time.Since(start))
		if err == nil || !strings.Contains(err.Error(), "refused") {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := h.m.Teardown(b.Context(), s.ID, s.Endpoints); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(median(waits).Microseconds()), "µs/median")
	b.ReportMetric(float64(waits[len(waits)-1].Microseconds()), "µs/worst")
}

// BenchmarkTurnover is one container after the other, each given back in the
// background while the next starts, as with "run --rm" in a loop.
func BenchmarkTurnover(b *testing.B) {
	for _, workers := range []int{1, 8} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			h := newHost(b)
			var mu sync.Mutex
			var setups []time.Duration
			var wg, background sync.WaitGroup
			work := make(chan int)
			for range workers {
				wg.Go(func() {
					for i := range work {
						start := time.Now()
						s, err := h.m.Setup(b.Context(), numbered(i, true))
						if err != nil {
							b.Error(err)
							continue
						}
						took := time.Since(start)
						mu.Lock()
						setups = append(setups, took)
						mu.Unlock()
						for _, f := range s.Held {
							f.Close()
						}
						background.Go(func() {
							if err := h.m.Teardown(b.Context(), s.ID, s.Endpoints); err != nil {
								b.Error(err)
							}
						})
					}
				})
			}
			for i := 0; b.Loop(); i++ {
				work <- i
			}
			close(work)
			wg.Wait()
			background.Wait()
			b.ReportMetric(float64(median(setups).Microseconds()), "µs/setup")
			b.ReportMetric(float64(setups[len(setups)*9/10].Microseconds()), "µs/setup-90%")
		})
	}
}
