package main

import (
	"strings"
	"testing"
)

func TestMeasure(t *testing.T) {
	for _, c := range []struct {
		name        string
		m           measure
		ratio, best float64 // best of A
	}{
		{"faster", measure{Samples: [2][]float64{{30, 10, 20}, {5, 5, 5}}}, 4, 10},
		{"even count", measure{Samples: [2][]float64{{10, 20}, {30, 30}}}, 0.5, 10},
		{"rates", measure{Higher: true, Samples: [2][]float64{{10, 10, 12}, {30, 30, 30}}}, 3, 12},
		{"one end only", measure{Samples: [2][]float64{{10}, nil}}, 0, 10},
		{"nothing", measure{}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r := c.m.ratio(); r != c.ratio {
				t.Errorf("ratio %v, want %v", r, c.ratio)
			}
			if b := c.m.best(0); b != c.best {
				t.Errorf("best %v, want %v", b, c.best)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ args, fail string }{
		{"-only run,exec -n 3", ""},
		{"-only nosuch", `no case "nosuch"`},
		{"-n 0", "positive"},
		{"-restart c", "a, b or ab"},
		{"-scale-ends x", "a, b or ab"},
		{"-scale 1000,x", "numbers of containers"},
		{"-scale 0", "numbers of containers"},
		{"-scale-a 10,300 -scale 10,300,1000", ""},
		{"-scale-a 10,0", `-scale-a "10,0": numbers of containers`},
		{"stray", `unknown argument "stray"`},
	} {
		_, err := parse(strings.Fields(c.args))
		switch {
		case c.fail == "" && err != nil:
			t.Errorf("%s: %v", c.args, err)
		case c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)):
			t.Errorf("%s: error %v, want %q", c.args, err, c.fail)
		}
	}
}

func TestParallelBounds(t *testing.T) {
	now, most := make(chan int, 1), 0
	now <- 0
	err := parallel(3, 20, func(i int) error {
		n := <-now + 1
		most = max(most, n)
		now <- n
		n = <-now - 1
		now <- n
		return nil
	})
	if err != nil || most > 3 || most < 1 {
		t.Errorf("at most %d at a time, error %v", most, err)
	}
}
