package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
)

// mounts is the value of --mount: comma-separated KEY=VALUE fields as CSV.
type mounts []mount.Mount

func (ms *mounts) Type() string   { return "mount" }
func (ms *mounts) String() string { return "" }

func (ms *mounts) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	p := mountParser{m: mount.Mount{Type: mount.TypeVolume}}
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		key = strings.ToLower(key)
		if !hasValue {
			value, err = bareMountField(key, f)
			if err != nil {
				return err
			}
		}
		if err := p.field(key, value, f); err != nil {
			return err
		}
	}
	if err := p.check(); err != nil {
		return err
	}
	*ms = append(*ms, p.m)
	return nil
}

// bareMountField gives the value of the few keys that may stand alone.
func bareMountField(key, field string) (string, error) {
	switch key {
	case "readonly", "ro", "volume-nocopy", "bind-nonrecursive":
		return "true", nil
	}
	return "", fmt.Errorf("invalid field '%s' must be a key=value pair", field)
}

type mountParser struct{ m mount.Mount }

func (p *mountParser) bind() *mount.BindOptions {
	if p.m.BindOptions == nil {
		p.m.BindOptions = &mount.BindOptions{}
	}
	return p.m.BindOptions
}

func (p *mountParser) volume() *mount.VolumeOptions {
	if p.m.VolumeOptions == nil {
		p.m.VolumeOptions = &mount.VolumeOptions{Labels: map[string]string{}, DriverConfig: &mount.Driver{}}
	}
	return p.m.VolumeOptions
}

func (p *mountParser) image() *mount.ImageOptions {
	if p.m.ImageOptions == nil {
		p.m.ImageOptions = &mount.ImageOptions{}
	}
	return p.m.ImageOptions
}

func (p *mountParser) tmpfs() *mount.TmpfsOptions {
	if p.m.TmpfsOptions == nil {
		p.m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return p.m.TmpfsOptions
}

func (p *mountParser) field(key, value, field string) error {
	switch key {
	case "type":
		p.m.Type = mount.Type(strings.ToLower(value))
	case "source", "src":
		p.m.Source = absolute(value)
	case "target", "dst", "destination":
		p.m.Target = value
	case "readonly", "ro":
		return setBool(&p.m.ReadOnly, key, value)
	case "consistency":
		p.m.Consistency = mount.Consistency(strings.ToLower(value))
	case "bind-propagation":
		p.bind().Propagation = mount.Propagation(strings.ToLower(value))
	case "bind-nonrecursive":
		return setBool(&p.bind().NonRecursive, key, value)
	case "bind-recursive":
		return p.recursive(value)
	case "image-subpath":
		p.image().Subpath = value
	case "tmpfs-size":
		n, err := units.RAMInBytes(value)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, value)
		}
		p.tmpfs().SizeBytes = n
	case "tmpfs-mode":
		n, err := strconv.ParseUint(value, 8, 32)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, value)
		}
		p.tmpfs().Mode = os.FileMode(n)
	default:
		return p.volumeField(key, value, field)
	}
	return nil
}

func (p *mountParser) volumeField(key, value, field string) error {
	switch key {
	case "volume-subpath":
		p.volume().Subpath = value
	case "volume-nocopy":
		return setBool(&p.volume().NoCopy, key, value)
	case "volume-label":
		put(p.volume().Labels, value)
	case "volume-driver":
		p.volume().DriverConfig.Name = value
	case "volume-opt":
		d := p.volume().DriverConfig
		if d.Options == nil {
			d.Options = map[string]string{}
		}
		put(d.Options, value)
	default:
		return fmt.Errorf("unexpected key '%s' in '%s'", key, field)
	}
	return nil
}

func (p *mountParser) recursive(value string) error {
	switch value {
	case "enabled":
	case "disabled":
		p.bind().NonRecursive = true
	case "writable":
		p.bind().ReadOnlyNonRecursive = true
	case "readonly":
		p.bind().ReadOnlyForceRecursive = true
	default:
		return fmt.Errorf(`invalid value for bind-recursive: %s (must be "enabled", "disabled", "writable", or "readonly")`, value)
	}
	return nil
}

// check refuses what no type of mount can mean.
func (p *mountParser) check() error {
	m := &p.m
	if m.Type == "" {
		return errors.New("type is required")
	}
	if m.Target == "" {
		return errors.New("target is required")
	}
	mixed := func(has bool, family string, only mount.Type) error {
		if has && m.Type != only {
			return fmt.Errorf("cannot mix '%s-*' options with mount type '%s'", family, m.Type)
		}
		return nil
	}
	for _, err := range []error{
		mixed(m.VolumeOptions != nil, "volume", mount.TypeVolume),
		mixed(m.ImageOptions != nil, "image", mount.TypeImage),
		mixed(m.BindOptions != nil, "bind", mount.TypeBind),
		mixed(m.TmpfsOptions != nil, "tmpfs", mount.TypeTmpfs),
	} {
		if err != nil {
			return err
		}
	}
	b := m.BindOptions
	switch {
	case b == nil:
	case b.ReadOnlyNonRecursive && !m.ReadOnly:
		return errors.New("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
	case b.ReadOnlyForceRecursive && !m.ReadOnly:
		return errors.New("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
	case b.ReadOnlyForceRecursive && b.Propagation != mount.PropagationRPrivate:
		return errors.New("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
	}
	return nil
}

func setBool(to *bool, key, value string) error {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return fmt.Errorf("invalid value for %s: %s", key, value)
	}
	*to = b
	return nil
}

func put(m map[string]string, entry string) {
	if k, v, _ := strings.Cut(entry, "="); k != "" {
		m[k] = v
	}
}

// absolute makes ./x and ../x absolute; anything else is a volume's name, an
// absolute path already, or the engine's to judge.
func absolute(p string) string {
	if !filepath.IsAbs(p) && strings.HasPrefix(p, ".") {
		if abs, err := filepath.Abs(p); err == nil {
			return abs
		}
	}
	return p
}

// volume splits the value of -v. bind is what goes to HostConfig.Binds, empty
// for an anonymous volume, whose path is then target.
func volume(s string) (bind, target string, err error) {
	if s == "" {
		return "", "", errors.New("invalid empty volume spec")
	}
	if len(s) <= 2 {
		return "", s, nil
	}
	parts := splitVolume(s)
	for _, p := range parts {
		if p == "" {
			return "", "", fmt.Errorf("invalid spec: %s: empty section between colons", s)
		}
	}
	switch {
	case len(parts) == 1:
		return "", s, nil
	case len(parts) > 3:
		return "", "", fmt.Errorf("invalid spec: %s: too many colons", s)
	}
	if !pathLike(parts[0]) {
		return s, "", nil
	}
	host, rest, _ := strings.Cut(s, ":")
	return absolute(host) + ":" + rest, "", nil
}

// splitVolume splits at colons, but not at the one behind a drive letter: the
// engine may be a Windows one.
func splitVolume(s string) []string {
	var parts []string
	start := 0
	for i, c := range s {
		if c != ':' {
			continue
		}
		section := []rune(s[start:i])
		if len(section) == 1 && unicode.IsLetter(section[0]) {
			continue
		}
		parts = append(parts, s[start:i])
		start = i + 1
	}
	return append(parts, s[start:])
}

// pathLike tells a host path from the name of a volume.
func pathLike(source string) bool {
	switch source[0] {
	case '.', '/', '~':
		return true
	}
	return strings.HasPrefix(source, `\\`) || len(source) > 1 && letter(source[0]) && source[1] == ':'
}
