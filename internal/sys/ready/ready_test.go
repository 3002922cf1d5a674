package ready

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counted are things that are counted when they are made and ended.
type counted struct {
	made, ended atomic.Int32
	fails       atomic.Bool
	slow        time.Duration
}

func (c *counted) spares(size int) *Spares[int32] {
	return New(Config[int32]{Size: size, Delay: 10 * time.Millisecond, Rest: time.Minute,
		Make: func() (int32, error) {
			time.Sleep(c.slow)
			if c.fails.Load() {
				return 0, errors.New("no")
			}
			return c.made.Add(1), nil
		},
		End: func(int32) { c.ended.Add(1) }})
}

func (c *counted) want(t *testing.T, when string, made, ended int32) {
	t.Helper()
	synctest.Wait()
	if m, e := c.made.Load(), c.ended.Load(); m != made || e != ended {
		t.Errorf("%s: %d made and %d ended, want %d and %d", when, m, e, made, ended)
	}
}

func TestSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{}
		s := c.spares(2)
		time.Sleep(time.Hour)
		c.want(t, "before any is asked for", 0, 0)
		if _, ok := s.Take(); ok {
			t.Error("the first is there already")
		}
		c.want(t, "at once", 0, 0)
		time.Sleep(11 * time.Millisecond)
		c.want(t, "after the delay", 2, 0)
		if one, ok := s.Take(); !ok || one != 1 {
			t.Errorf("took %d, %t", one, ok)
		}
		for range 20 { // a storm: there is no time for more
			time.Sleep(5 * time.Millisecond)
			s.Take()
		}
		c.want(t, "in a storm", 2, 0)
		time.Sleep(11 * time.Millisecond)
		c.want(t, "after it", 4, 0)
		time.Sleep(time.Minute)
		c.want(t, "when nobody asks", 4, 2)
		if _, ok := s.Take(); ok {
			t.Error("what had ended was given")
		}
		time.Sleep(11 * time.Millisecond)
		c.want(t, "in demand again", 6, 2)
		s.Close()
		c.want(t, "closed", 6, 4)
		if _, ok := s.Take(); ok {
			t.Error("took one of what is closed")
		}
		time.Sleep(time.Hour)
		c.want(t, "long after", 6, 4)
		s.Close()
	})
}

// What cannot be made is tried again when there is demand, not for ever.
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{}
		c.fails.Store(true)
		s := c.spares(1)
		defer s.Close()
		s.Take()
		time.Sleep(time.Hour)
		c.want(t, "failing", 0, 0)
		c.fails.Store(false)
		time.Sleep(time.Hour)
		c.want(t, "without demand", 0, 0)
		s.Take()
		time.Sleep(time.Second)
		c.want(t, "in demand", 1, 0)
	})
}

// Who takes one knows better when the next is to be made.
func TestSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{}
		s := c.spares(1)
		defer s.Close()
		s.Soon(time.Millisecond)
		time.Sleep(time.Hour)
		c.want(t, "without demand", 0, 0)
		s.Take()
		s.Soon(time.Millisecond)
		time.Sleep(2 * time.Millisecond)
		c.want(t, "sooner", 1, 0)
		s.Take()
		s.Soon(time.Second)
		time.Sleep(900 * time.Millisecond)
		c.want(t, "later", 1, 0)
		time.Sleep(200 * time.Millisecond)
		c.want(t, "later, and now", 2, 0)
		s.Take()
		time.Sleep(time.Minute)
		c.want(t, "at rest", 3, 1)
		s.Soon(time.Millisecond)
		time.Sleep(time.Hour)
		c.want(t, "out of demand", 3, 1)
		s.Take()
		s.Close()
		s.Soon(0)
		time.Sleep(time.Hour)
		c.want(t, "closed", 3, 1)
	})
}

// What is being made when the rest begins is ended, too.
func TestRestAmid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{slow: 45 * time.Second}
		s := c.spares(3)
		defer s.Close()
		s.Take()
		time.Sleep(2 * time.Minute)
		c.want(t, "at rest", 2, 2)
		s.Take()
		time.Sleep(50 * time.Second)
		c.want(t, "in demand", 3, 2)
	})
}

// What is being made when all is closed is ended, and Close waits for it.
func TestCloseAmid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{slow: time.Second}
		s := c.spares(3)
		s.Take()
		time.Sleep(500 * time.Millisecond)
		s.Close()
		c.want(t, "closed", 1, 1)
	})
}

func TestManyAtOnce(t *testing.T) {
	c := &counted{}
	s := New(Config[int32]{Size: 3, Delay: time.Microsecond, Rest: 50 * time.Microsecond,
		Make: func() (int32, error) { return c.made.Add(1), nil }, End: func(int32) { c.ended.Add(1) }})
	var took atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				if _, ok := s.Take(); ok {
					took.Add(1)
				}
			}
		})
	}
	wg.Wait()
	s.Close()
	if c.made.Load() != took.Load()+c.ended.Load() {
		t.Errorf("%d made, %d taken, %d ended", c.made.Load(), took.Load(), c.ended.Load())
	}
}
