package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/shlex"
	"github.com/moby/moby/api/types/swarm"
)

// number is a whole number that may be left out.
type number struct{ value *uint64 }

func (n *number) Set(s string) error {
	v, err := strconv.ParseUint(s, 0, 64)
	n.value = &v
	return err
}

func (n *number) String() string {
	if n.value == nil {
		return ""
	}
	return strconv.FormatUint(*n.value, 10)
}

func (*number) Type() string { return "uint" }

// duration is a time span that may be left out.
type duration struct {
	value    *time.Duration
	positive bool // only those are taken
}

func (d *duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	d.value = &v
	if err == nil && d.positive && v < 0 {
		err = errors.New("duration cannot be negative")
	}
	return err
}

func (d *duration) String() string {
	if d.value == nil {
		return ""
	}
	return d.value.String()
}

func (*duration) Type() string { return "duration" }

// or is the value, or 0.
func (d *duration) orZero() time.Duration {
	if d.value == nil {
		return 0
	}
	return *d.value
}

// ratio is a share between 0 and 1.
type ratio float32

func (r *ratio) Set(s string) error {
	v, err := strconv.ParseFloat(s, 32)
	*r = ratio(v)
	return err
}

func (r *ratio) String() string { return strconv.FormatFloat(float64(*r), 'g', -1, 32) }
func (*ratio) Type() string     { return "float" }

// command is a line split into words as a shell does it.
type command []string

func (c *command) Set(s string) error {
	words, err := shlex.Split(s)
	if err == nil {
		*c = words
	}
	return err
}

func (c *command) String() string {
	if len(*c) == 0 {
		return ""
	}
	return fmt.Sprint([]string(*c))
}

func (*command) Type() string { return "command" }

// preferences are --placement-pref spread=DESCRIPTOR.
type preferences []swarm.PlacementPreference

func (p *preferences) Set(s string) error {
	strategy, arg, ok := strings.Cut(s, "=")
	switch {
	case !ok || strategy == "":
		return errors.New(`placement preference must be of the format "<strategy>=<arg>"`)
	case strategy != "spread":
		return fmt.Errorf("unsupported placement preference %s (only spread is supported)", strategy)
	}
	*p = append(*p, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: arg}})
	return nil
}

func (p *preferences) String() string {
	var words []string
	for _, x := range *p {
		words = append(words, "spread="+x.Spread.SpreadDescriptor)
	}
	return strings.Join(words, ",")
}

func (*preferences) Type() string { return "pref" }

// credential is --credential-spec: for Windows, where an engine says so.
type credential struct {
	value  *swarm.CredentialSpec
	source string
}

func (c *credential) Set(s string) error {
	c.source, c.value = s, &swarm.CredentialSpec{}
	for prefix, field := range map[string]*string{"config://": &c.value.Config, "file://": &c.value.File, "registry://": &c.value.Registry} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			*field = rest
			return nil
		}
	}
	if s == "" {
		return nil // none, any more
	}
	return errors.New(`invalid credential spec: value must be prefixed with "config://", "file://", or "registry://"`)
}

func (c *credential) String() string { return c.source }
func (*credential) Type() string     { return "credential-spec" }

// reference is a secret or a config that a service asks for, and the file it becomes.
type reference struct {
	source, target, uid, gid string
	mode                     os.FileMode
}

// references is the value of --secret and --config.
type references struct {
	kind string // secret or config
	list []reference
}

func (r *references) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	ref := reference{uid: "0", gid: "0", mode: 0o444}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		ref.source, ref.target = fields[0], fields[0]
		r.list = append(r.list, ref)
		return nil
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok || key == "" {
			return fmt.Errorf("invalid field '%s' must be a key=value pair", f)
		}
		if err := ref.set(r.kind, key, value); err != nil {
			return err
		}
	}
	if ref.source == "" {
		return errors.New("source is required")
	}
	if ref.target == "" {
		ref.target = ref.source
	}
	r.list = append(r.list, ref)
	return nil
}

func (r *reference) set(kind, key, value string) error {
	switch strings.ToLower(key) {
	case "source", "src":
		r.source = value
	case "target":
		r.target = value
	case "uid":
		r.uid = value
	case "gid":
		r.gid = value
	case "mode":
		m, err := strconv.ParseUint(value, 0, 32)
		if err != nil {
			return fmt.Errorf("invalid mode specified: %w", err)
		}
		r.mode = os.FileMode(m)
	default:
		return fmt.Errorf("invalid field in %s request: %s", kind, key)
	}
	return nil
}

func (r *references) String() string {
	var words []string
	for _, x := range r.list {
		words = append(words, x.source+" -> "+x.target)
	}
	return strings.Join(words, ", ")
}

func (r *references) Type() string { return r.kind }
