package managed

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/plugin"
)

// settingsOf are a plugin's settings before anybody changes them. What is settable is
// copied: a change of it is none of the configuration.
func settingsOf(c *plugin.Config) plugin.Settings {
	s := plugin.Settings{Mounts: []plugin.Mount{}, Devices: []plugin.Device{}, Env: []string{}, Args: append([]string{}, c.Args.Value...)}
	for _, m := range c.Mounts {
		m.Source = clone(m.Source)
		s.Mounts = append(s.Mounts, m)
	}
	for _, d := range c.Linux.Devices {
		d.Path = clone(d.Path)
		s.Devices = append(s.Devices, d)
	}
	for _, e := range c.Env {
		if e.Value != nil {
			s.Env = append(s.Env, e.Name+"="+*e.Value)
		}
	}
	return s
}

func clone(s *string) *string {
	if s == nil {
		return nil
	}
	c := *s
	return &c
}

// setting is one of NAME[.FIELD][=VALUE].
type setting struct{ name, field, value string }

func parseSetting(arg string) (setting, error) {
	name, value, _ := strings.Cut(arg, "=")
	if name == "" {
		return setting{}, invalidf("invalid format, must be <name>[.<field>][=<value>]")
	}
	s := setting{name: name, value: value}
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		s.name, s.field = name[:i], name[i+1:]
	}
	return s, nil
}

// may tells whether a setting can be changed: field is the only one of its kind of thing.
func (s setting) may(field string, settable []string) error {
	wanted := s.field
	if wanted == "" {
		if len(settable) > 1 {
			return invalidf("multiple fields are settable, one must be specified")
		}
		if len(settable) == 1 {
			wanted = settable[0]
		}
	}
	if wanted != field || !slices.Contains(settable, wanted) {
		name := s.name
		if s.field != "" {
			name += "." + s.field
		}
		return invalidf("%q is not settable", name)
	}
	return nil
}

// set changes settings, in Docker's words when it may not. With an error none is changed.
func set(p *plugin.Plugin, args []string) error {
	if p.Enabled {
		return errdefs.ErrConflict.WithMessage("cannot set on an active plugin, disable plugin before setting")
	}
	next := plugin.Settings{Env: slices.Clone(p.Settings.Env), Args: slices.Clone(p.Settings.Args)}
	for _, m := range p.Settings.Mounts {
		m.Source = clone(m.Source)
		next.Mounts = append(next.Mounts, m)
	}
	for _, d := range p.Settings.Devices {
		d.Path = clone(d.Path)
		next.Devices = append(next.Devices, d)
	}
	for _, arg := range args {
		s, err := parseSetting(arg)
		if err == nil {
			err = s.apply(&p.Config, &next)
		}
		if err != nil {
			return err
		}
	}
	p.Settings = next
	return nil
}

// apply finds what a setting is about, in Docker's order.
func (s setting) apply(c *plugin.Config, to *plugin.Settings) error {
	for _, e := range c.Env {
		if e.Name == s.name {
			if err := s.may("value", e.Settable); err != nil {
				return err
			}
			to.Env = slices.DeleteFunc(to.Env, func(kv string) bool { return strings.HasPrefix(kv, s.name+"=") })
			to.Env = append(to.Env, s.name+"="+s.value)
			return nil
		}
	}
	for i, m := range c.Mounts {
		if m.Name == s.name {
			if err := s.may("source", m.Settable); err != nil {
				return err
			}
			to.Mounts[i].Source = &s.value
			return nil
		}
	}
	for i, d := range c.Linux.Devices {
		if d.Name == s.name {
			if err := s.may("path", d.Settable); err != nil {
				return err
			}
			to.Devices[i].Path = &s.value
			return nil
		}
	}
	if c.Args.Name == s.name {
		if err := s.may("value", c.Args.Settable); err != nil {
			return err
		}
		to.Args = strings.Split(s.value, " ")
		return nil
	}
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("setting %q not found in the plugin configuration", s.name))
}

// privileges are what a plugin needs of the machine that a user has to grant.
func privileges(c *plugin.Config) plugin.Privileges {
	out := plugin.Privileges{}
	add := func(name, description string, value ...string) {
		out = append(out, plugin.Privilege{Name: name, Description: description, Value: value})
	}
	if n := c.Network.Type; n != "null" && n != "bridge" && n != "" {
		add("network", "permissions to access a network", n)
	}
	if c.IpcHost {
		add("host ipc namespace", "allow access to host ipc namespace", "true")
	}
	if c.PidHost {
		add("host pid namespace", "allow access to host pid namespace", "true")
	}
	for _, m := range c.Mounts {
		if m.Source != nil {
			add("mount", "host path to mount", *m.Source)
		}
	}
	for _, d := range c.Linux.Devices {
		if d.Path != nil {
			add("device", "host device to access", *d.Path)
		}
	}
	if c.Linux.AllowAllDevices {
		add("allow-all-devices", "allow 'rwm' access to all devices", "true")
	}
	if len(c.Linux.Capabilities) > 0 {
		add("capabilities", "list of additional capabilities required", c.Linux.Capabilities...)
	}
	return out
}

// granted refuses privileges that are not those needed, whatever their order.
func granted(needed, given plugin.Privileges) error {
	if !slices.Equal(lines(needed), lines(given)) {
		return invalidf("incorrect privileges")
	}
	return nil
}

func lines(all plugin.Privileges) []string {
	out := make([]string, len(all))
	for i, p := range all {
		values := slices.Sorted(slices.Values(p.Value))
		out[i] = fmt.Sprintf("%q %q", p.Name, values)
	}
	slices.Sort(out)
	return out
}
