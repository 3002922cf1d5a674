package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
)

func msg(n int) Message {
	return Message{Type: "container", Action: "start", Actor: events.Actor{ID: strconv.Itoa(n)}}
}

func subscribe(t testing.TB, j *Journal, sub Subscription) *Stream {
	t.Helper()
	s, err := j.Subscribe(t.Context(), sub)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read drains a stream up to its end and returns the ids in order.
func read(t testing.TB, s *Stream) []string {
	t.Helper()
	var ids []string
	for {
		m, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Actor.ID)
	}
}

func TestPublishFillsTheMessage(t *testing.T) {
	now := time.Unix(1_700_000_000, 123)
	j := New(Config{Now: func() time.Time { return now }})
	s := subscribe(t, j, Subscription{})
	attrs := map[string]string{"name": "web"}
	j.Publish(Message{Type: "container", Action: "die", Actor: events.Actor{ID: "a", Attributes: attrs}})
	attrs["name"] = "changed later"
	j.Publish(Message{Type: "container", Action: "die", Scope: "swarm"})
	first, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, _ := s.Next(t.Context())
	if first.Time != 1_700_000_000 || first.TimeNano != now.UnixNano() || first.Scope != "local" {
		t.Errorf("filled %+v", first)
	}
	if first.Actor.Attributes["name"] != "web" {
		t.Errorf("attributes are the publisher's map: %v", first.Actor.Attributes)
	}
	if second.Scope != "swarm" || second.TimeNano != first.TimeNano+1 {
		t.Errorf("second %+v: want its scope kept and a stamp one later", second)
	}
}

func TestSubscriptionWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
		j := New(Config{})
		defer j.Close()
		for i := range 10 { // message i at second i
			j.Publish(msg(i))
			time.Sleep(time.Second)
		}
		for _, c := range []struct {
			name string
			sub  Subscription
			want string
		}{
			{"since and until in the past", Subscription{Since: at(3), Until: at(5)}, "[3 4 5]"},
			{"until alone gives the past", Subscription{Until: at(2)}, "[0 1 2]"},
			{"filtered", Subscription{Until: at(9), Match: func(m Message) bool { return m.Actor.ID == "4" }}, "[4]"},
			{"until now", Subscription{Since: at(8), Until: at(10)}, "[8 9]"},
			{"empty window", Subscription{Since: start.Add(time.Millisecond), Until: start.Add(2 * time.Millisecond)}, "[]"},
		} {
			before := time.Now()
			if got := fmt.Sprint(read(t, subscribe(t, j, c.sub))); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
			if d := time.Since(before); d != 0 {
				t.Errorf("%s: took %v of time", c.name, d)
			}
		}
		// A window that begins in the past and ends in the future: history, then live.
		// It ends between two messages: at one and the same instant either may be first.
		end := at(12).Add(time.Second / 2)
		s := subscribe(t, j, Subscription{Since: at(9), Until: end})
		go func() {
			for i := 10; i < 20; i++ {
				j.Publish(msg(i))
				time.Sleep(time.Second)
			}
		}()
		if got := fmt.Sprint(read(t, s)); got != "[9 10 11 12]" {
			t.Errorf("history and live: %s", got)
		}
		if now := time.Now(); !now.Equal(end) {
			t.Errorf("ended after %v, want %v", now.Sub(start), end.Sub(start))
		}
		time.Sleep(10 * time.Second)
	})
}

func TestSubscribeRefusals(t *testing.T) {
	j := New(Config{})
	_, err := j.Subscribe(t.Context(), Subscription{Since: time.Unix(20, 0), Until: time.Unix(10, 0)})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("since after until: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Subscribe(t.Context(), Subscription{}); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
	j.Publish(msg(1)) // does nothing, and above all does not panic
	if err := j.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestNextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := New(Config{})
		next := func(ctx context.Context, s *Stream) <-chan error {
			out := make(chan error, 1)
			go func() { _, err := s.Next(ctx); out <- err }()
			synctest.Wait()
			return out
		}
		s := subscribe(t, j, Subscription{})
		ctx, cancel := context.WithCancel(t.Context())
		waiting := next(ctx, s)
		cancel()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("context of Next ended: %v", err)
		}
		j.Publish(msg(7))
		if m, err := s.Next(t.Context()); err != nil || m.Actor.ID != "7" {
			t.Errorf("a stream after a cancelled Next: %v %v", m, err)
		}
		waiting = next(t.Context(), s)
		s.Close()
		s.Close()
		if err := <-waiting; err != io.EOF {
			t.Errorf("closed: %v", err)
		}

		ctx, cancel = context.WithCancel(t.Context())
		s, err := j.Subscribe(ctx, Subscription{})
		if err != nil {
			t.Fatal(err)
		}
		waiting = next(t.Context(), s)
		cancel()
		if err := <-waiting; err != io.EOF {
			t.Errorf("context of Subscribe ended: %v", err)
		}

		// A journal that closes lets its readers read what there is.
		s = subscribe(t, j, Subscription{})
		late := subscribe(t, j, Subscription{})
		waiting = next(t.Context(), late)
		j.Publish(msg(8))
		<-waiting
		j.Close()
		if ids := fmt.Sprint(read(t, s), read(t, late)); ids != "[8] []" {
			t.Errorf("after the journal closed: %s", ids)
		}
	})
}

func TestLaggingReaderIsTold(t *testing.T) {
	j := New(Config{Size: 10})
	s := subscribe(t, j, Subscription{})
	for i := range 25 {
		j.Publish(msg(i))
	}
	_, err := s.Next(t.Context())
	var lag *LaggedError
	if !errors.Is(err, ErrLagged) || !errors.As(err, &lag) || lag.Lost != 15 {
		t.Fatalf("25 published, 10 kept: %v", err)
	}
	for want := 15; want < 25; want++ {
		if m, err := s.Next(t.Context()); err != nil || m.Actor.ID != strconv.Itoa(want) {
			t.Fatalf("after the lag: %v %v, want %d", m.Actor.ID, err, want)
		}
	}
	// What was overwritten before a reader came is no lag of the reader.
	s = subscribe(t, j, Subscription{Since: time.Unix(1, 0), Until: time.Now()})
	if got := read(t, s); len(got) != 10 || got[0] != "15" {
		t.Errorf("history: %q", got)
	}
}

// Every reader sees every message once and in order, whatever its pace.
func TestManyReadersStrictOrder(t *testing.T) {
	const messages, publishers, readers = 4000, 4, 20
	j := New(Config{Size: messages})
	var wg sync.WaitGroup
	for r := range readers {
		s := subscribe(t, j, Subscription{})
		wg.Go(func() {
			var stamp int64
			last := map[byte]int{}
			for n := range messages {
				m, err := s.Next(t.Context())
				if err != nil {
					t.Errorf("reader %d, message %d: %v", r, n, err)
					return
				}
				publisher := m.Actor.ID[0]
				number, _ := strconv.Atoi(m.Actor.ID[1:])
				if m.TimeNano <= stamp || number != last[publisher]+1 {
					t.Errorf("reader %d: %s after %d, stamp %d after %d", r, m.Actor.ID, last[publisher], m.TimeNano, stamp)
					return
				}
				stamp, last[publisher] = m.TimeNano, number
				if r%5 == 0 && n%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for p := range publishers {
		wg.Go(func() {
			for i := range messages / publishers {
				j.Publish(Message{Type: "x", Actor: events.Actor{ID: string(rune('a'+p)) + strconv.Itoa(i+1)}})
			}
		})
	}
	wg.Wait()
}

// A clock that jumps is followed; one that stands still gives rising stamps.
func TestClockJumps(t *testing.T) {
	now := time.Unix(1000, 0)
	j := New(Config{Now: func() time.Time { return now }})
	s := subscribe(t, j, Subscription{})
	var stamps []int64
	for _, d := range []time.Duration{0, 0, -500 * time.Microsecond, -time.Hour, 2 * time.Hour} {
		now = now.Add(d)
		j.Publish(msg(0))
		m, _ := s.Next(t.Context())
		stamps = append(stamps, m.TimeNano)
	}
	for i := 1; i < len(stamps); i++ {
		if rises := stamps[i] > stamps[i-1]; rises != (i != 3) {
			t.Errorf("stamps %v: number %d", stamps, i)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, readers := range []int{0, 100} {
		for _, disk := range []bool{false, true} {
			b.Run(fmt.Sprintf("readers=%d/file=%v", readers, disk), func(b *testing.B) {
				c := Config{}
				if disk {
					c.Path = b.TempDir() + "/events"
				}
				j := New(c)
				defer j.Close()
				var wg sync.WaitGroup
				for range readers {
					s := subscribe(b, j, Subscription{})
					wg.Go(func() {
						for {
							if _, err := s.Next(b.Context()); err != nil && !errors.Is(err, ErrLagged) {
								return
							}
						}
					})
				}
				m := msg(1)
				m.Actor.Attributes = map[string]string{"image": "debian", "name": "web"}
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					j.Publish(m)
				}
				b.StopTimer()
				j.Close()
				wg.Wait()
			})
		}
	}
}
