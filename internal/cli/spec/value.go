package spec

import (
	"fmt"
	"math/big"
	"sort"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
)

// List is a repeatable flag. Check, when set, validates and may rewrite each
// value as it is parsed.
type List struct {
	Values []string
	Check  func(string) (string, error)
}

// Set appends one value.
func (l *List) Set(s string) error {
	if l.Check != nil {
		v, err := l.Check(s)
		if err != nil {
			return err
		}
		s = v
	}
	l.Values = append(l.Values, s)
	return nil
}

// String is the default shown in help: nothing.
func (l *List) String() string {
	if len(l.Values) == 0 {
		return ""
	}
	return fmt.Sprint(l.Values)
}

// Type is the word help shows for the value.
func (*List) Type() string { return "list" }

func (l *List) has(s string) bool {
	for _, v := range l.Values {
		if v == s {
			return true
		}
	}
	return false
}

// orEmpty never returns nil, for fields that Docker sends as [] and not null.
func (l *List) orEmpty() []string {
	if l.Values == nil {
		return []string{}
	}
	return l.Values
}

// dict is a repeatable key=value flag; a later value of a key wins.
type dict struct {
	values map[string]string
	check  func(string) (string, error)
}

func (d *dict) Set(s string) error {
	if d.check != nil {
		v, err := d.check(s)
		if err != nil {
			return err
		}
		s = v
	}
	if d.values == nil {
		d.values = map[string]string{}
	}
	k, v, _ := strings.Cut(s, "=")
	d.values[k] = v
	return nil
}

func (d *dict) String() string { return "" }
func (*dict) Type() string     { return "map" }

func (d *dict) orEmpty() map[string]string {
	if d.values == nil {
		return map[string]string{}
	}
	return d.values
}

// size is a number of bytes with an optional unit: 64m, 1g, 512k. Where
// unlimited is set, -1 is a value too.
type size struct {
	bytes     int64
	unlimited bool
}

func (z *size) Set(s string) error {
	if z.unlimited && s == "-1" {
		z.bytes = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return err
	}
	z.bytes = n
	return nil
}

func (z *size) String() string {
	if z.bytes == 0 {
		return "0"
	}
	return units.BytesSize(float64(z.bytes))
}

func (*size) Type() string { return "bytes" }

// nanoCPUs is a decimal number of CPUs kept in billionths, exactly.
type nanoCPUs int64

func (c *nanoCPUs) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return fmt.Errorf("failed to parse %v as a rational number", s)
	}
	n := r.Mul(r, big.NewRat(1e9, 1))
	if !n.IsInt() {
		return fmt.Errorf("value is too precise")
	}
	*c = nanoCPUs(n.Num().Int64())
	return nil
}

func (c *nanoCPUs) String() string {
	if *c == 0 {
		return ""
	}
	return big.NewRat(int64(*c), 1e9).FloatString(3)
}

func (*nanoCPUs) Type() string { return "decimal" }

// ulimits keeps one limit a name, in the order of names.
type ulimits map[string]*container.Ulimit

func (u *ulimits) Set(s string) error {
	l, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	if *u == nil {
		*u = ulimits{}
	}
	(*u)[l.Name] = l
	return nil
}

func (u *ulimits) String() string { return "" }
func (*ulimits) Type() string     { return "ulimit" }

func (u *ulimits) list() []*container.Ulimit {
	out := make([]*container.Ulimit, 0, len(*u))
	for _, l := range *u {
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// throttle is DEVICE:RATE. Rates are bytes a second with a unit, or, with
// plain set, a bare number of operations a second.
type throttle struct {
	values []*blkiodev.ThrottleDevice
	plain  bool
}

func (t *throttle) Set(s string) error {
	dev, rate, err := splitDevice(s)
	if err != nil {
		return err
	}
	if t.plain {
		n, err := strconv.ParseUint(rate, 10, 64)
		if err != nil {
			return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>. Number must be a positive integer", s)
		}
		t.values = append(t.values, &blkiodev.ThrottleDevice{Path: dev, Rate: n})
		return nil
	}
	n, err := units.RAMInBytes(rate)
	if err != nil || n < 0 {
		return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb", s)
	}
	t.values = append(t.values, &blkiodev.ThrottleDevice{Path: dev, Rate: uint64(n)})
	return nil
}

func (t *throttle) String() string { return "" }
func (*throttle) Type() string     { return "list" }

// weights is DEVICE:WEIGHT with a weight of 0 or 10 to 1000.
type weights []*blkiodev.WeightDevice

func (w *weights) Set(s string) error {
	dev, weight, err := splitDevice(s)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(weight, 10, 16)
	if err != nil || n > 0 && (n < 10 || n > 1000) {
		return fmt.Errorf("invalid weight for device: %s", s)
	}
	*w = append(*w, &blkiodev.WeightDevice{Path: dev, Weight: uint16(n)})
	return nil
}

func (w *weights) String() string { return "" }
func (*weights) Type() string     { return "list" }

func splitDevice(s string) (dev, value string, err error) {
	dev, value, ok := strings.Cut(s, ":")
	if !ok || dev == "" {
		return "", "", fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(dev, "/dev/") {
		return "", "", fmt.Errorf("bad format for device path: %s", s)
	}
	return dev, value, nil
}
