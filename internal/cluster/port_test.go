package cluster

import "testing"

func TestPort(t *testing.T) {
	for _, c := range []struct {
		port     Port
		open     bool
		text     string
		yes, not uint16
	}{
		{Port{}, true, "", 1, 0},
		{Port{Published: 80}, false, "80", 80, 81},
		{Port{Published: 80, Last: 80}, false, "80", 80, 79},
		{Port{Published: 8000, Last: 8002}, true, "8000-8002", 8002, 8003},
		{Port{Published: 65534, Last: 65535}, true, "65534-65535", 65535, 65533},
	} {
		if c.port.Open() != c.open || c.port.Range() != c.text || !c.port.Suits(c.yes) || c.port.Suits(c.not) {
			t.Errorf("%+v: open %v, %q, %d %v, %d %v", c.port, c.port.Open(), c.port.Range(), c.yes, c.port.Suits(c.yes), c.not, c.port.Suits(c.not))
		}
		if got := c.port.At(c.yes); got.Open() || got.Published != c.yes || got.Last != 0 {
			t.Errorf("%+v at %d: %+v", c.port, c.yes, got)
		}
	}
}

// A range has room on a node until its ports are surely taken.
func TestFits(t *testing.T) {
	one := func(n uint16) Port { return Port{Proto: "tcp", Published: n} }
	at := func(address string, first, last uint16) Port {
		return Port{Proto: "tcp", Published: first, Last: last, Address: address}
	}
	two := at("", 8000, 8001)
	for name, c := range map[string]struct {
		port   Port
		others []Port
		want   bool
	}{
		"nobody":           {two, nil, true},
		"one of two":       {two, []Port{one(8000), one(8002)}, true},
		"both":             {two, []Port{one(8000), one(8001)}, false},
		"the same twice":   {two, []Port{two, two}, false},
		"one and the same": {two, []Port{two, one(8001)}, false},
		"a wider one":      {two, []Port{{Proto: "tcp", Published: 8000, Last: 8002}, one(8001)}, true},
		"others' protocol": {two, []Port{{Proto: "udp", Published: 8000, Last: 8001}, {Proto: "udp", Published: 8000}}, true},
		"others' address":  {Port{Proto: "tcp", Published: 80, Address: "127.0.0.1"}, []Port{{Proto: "tcp", Published: 80, Address: "127.0.0.2"}}, true},
		"every address":    {at("127.0.0.1", 80, 0), []Port{at("0.0.0.0", 80, 0)}, false},
		"of two families":  {at("0.0.0.0", 80, 0), []Port{at("::", 80, 0), at("::1", 80, 0)}, true},
		"of both":          {at("::1", 80, 0), []Port{at("", 80, 0)}, false},
		"of one, mapped":   {at("0.0.0.0", 80, 0), []Port{at("::ffff:10.0.0.1", 80, 0)}, false},
		"one at two":       {two, []Port{at("10.0.0.1", 8000, 0), at("127.0.0.1", 8000, 0)}, true},
		"both at two":      {two, []Port{at("10.0.0.1", 8000, 0), at("127.0.0.1", 8001, 0)}, false},
		"ranges at two":    {two, []Port{at("10.0.0.1", 8000, 8001), at("127.0.0.1", 8000, 8001)}, true},
		"a range at one":   {two, []Port{at("10.0.0.1", 8000, 8001), at("10.0.0.1", 8000, 0), at("127.0.0.1", 8000, 0)}, false},
		"a range at all":   {two, []Port{at("", 8000, 8001), at("10.0.0.1", 8000, 0)}, false},
		"any":              {Port{Proto: "tcp"}, []Port{{Proto: "tcp"}, one(80)}, true},
		"beside any":       {one(80), []Port{{Proto: "tcp"}}, true},
	} {
		if got := c.port.Fits(c.others); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The ports of one task have a number each, too.
func TestFit(t *testing.T) {
	one := func(n uint16) Port { return Port{Proto: "tcp", Published: n} }
	two := Port{Proto: "tcp", Published: 8000, Last: 8001}
	for name, c := range map[string]struct {
		ports, others []Port
		want          bool
	}{
		"nothing":          {nil, []Port{two}, true},
		"two":              {[]Port{two, two}, nil, true},
		"two of one":       {[]Port{two, two}, []Port{one(8000)}, false},
		"three of two":     {[]Port{two, two, two}, nil, false},
		"beside a number":  {[]Port{one(8000), two}, []Port{one(8002)}, true},
		"without a number": {[]Port{two, one(8000)}, []Port{one(8001)}, false},
		"any":              {[]Port{{Proto: "tcp"}, {Proto: "tcp"}}, nil, true},
		"of two families":  {[]Port{{Proto: "tcp", Published: 80, Address: "0.0.0.0"}, {Proto: "tcp", Published: 80, Address: "::"}}, nil, true},
	} {
		if got := Fit(c.ports, c.others); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
