// Package changes applies Dockerfile instructions to an image's configuration,
// as `docker import -c` and `docker commit -c` do. It knows the instructions
// that only touch the configuration; it runs nothing.
//
// Syntax: https://docs.docker.com/reference/dockerfile/.
package changes

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

// Config is the configuration that instructions change.
type Config = dockerspec.DockerOCIImageConfig

// problem is an error in a client's words: exactly text, of kind InvalidArgument.
type problem struct{ text string }

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return errdefs.ErrInvalidArgument }

func problemf(format string, args ...any) error {
	return &problem{text: fmt.Sprintf(format, args...)}
}

// known are the instructions that a change may use.
var known = map[string]func(*state, instruction) error{
	"cmd":         (*state).cmd,
	"entrypoint":  (*state).entrypoint,
	"env":         (*state).env,
	"expose":      (*state).expose,
	"healthcheck": (*state).healthcheck,
	"label":       (*state).label,
	"onbuild":     (*state).onbuild,
	"stopsignal":  (*state).stopsignal,
	"user":        (*state).user,
	"volume":      (*state).volume,
	"workdir":     (*state).workdir,
}

// state is a configuration on its way through the instructions.
type state struct {
	config *Config
	cmdSet bool // a CMD came before: an ENTRYPOINT keeps it
}

// Apply carries out instructions on config, in order. Each element may hold
// several lines. An error is of kind InvalidArgument, in Docker's words, and
// config is then as it was.
func Apply(config *Config, instructions []string) error {
	if len(instructions) == 0 {
		return nil
	}
	list, err := parse(strings.Join(instructions, "\n"))
	if err != nil {
		return err
	}
	next := clone(config)
	s := &state{config: &next}
	for _, in := range list {
		if err := known[strings.ToLower(in.name)](s, in); err != nil {
			return err
		}
	}
	*config = next
	return nil
}

// clone copies what instructions write to in place.
func clone(c *Config) Config {
	next := *c
	next.Env = append([]string(nil), c.Env...)
	next.OnBuild = append([]string(nil), c.OnBuild...)
	next.ExposedPorts = cloneMap(c.ExposedPorts)
	next.Volumes = cloneMap(c.Volumes)
	next.Labels = cloneMap(c.Labels)
	return next
}

func cloneMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return nil
	}
	out := make(map[string]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// shell is what the shell form of a command runs under.
func (s *state) shell() []string {
	if len(s.config.Shell) > 0 {
		return append([]string(nil), s.config.Shell...)
	}
	return []string{"/bin/sh", "-c"}
}

// commandLine reads the exec form or the shell form. empty: no argument at all.
func (s *state) commandLine(in instruction) (argv []string, empty bool, err error) {
	if err := in.noFlags(); err != nil {
		return nil, false, err
	}
	words, isJSON, err := jsonOrText(in.rest)
	if err != nil {
		return nil, false, err
	}
	if isJSON {
		return words, len(words) == 0, nil
	}
	return append(s.shell(), words...), len(words) == 0, nil
}

func (s *state) cmd(in instruction) error {
	argv, empty, err := s.commandLine(in)
	if err != nil {
		return err
	}
	s.config.Cmd = argv
	if !empty {
		s.cmdSet = true
	}
	return nil
}

func (s *state) entrypoint(in instruction) error {
	argv, empty, err := s.commandLine(in)
	if err != nil {
		return err
	}
	if empty {
		argv = nil
	}
	s.config.Entrypoint = argv
	if !s.cmdSet {
		s.config.Cmd = nil
	}
	return nil
}

// pairs reads the words of ENV and LABEL and expands them.
func (s *state) pairs(in instruction, name string) ([][2]string, error) {
	list, err := nameValues(in.rest, name)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, problemf("%s requires at least one argument", name)
	}
	if err := in.noFlags(); err != nil {
		return nil, err
	}
	for _, p := range list {
		if p[0] == "" {
			return nil, problemf("%s names can not be blank", name)
		}
	}
	for i, p := range list {
		for j := range p {
			if list[i][j], err = expand(p[j], s.config.Env); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

func (s *state) env(in instruction) error {
	list, err := s.pairs(in, "ENV")
	if err != nil {
		return err
	}
next:
	for _, p := range list {
		entry := p[0] + "=" + p[1]
		for i, old := range s.config.Env {
			if name, _, _ := strings.Cut(old, "="); name == p[0] {
				s.config.Env[i] = entry
				continue next
			}
		}
		s.config.Env = append(s.config.Env, entry)
	}
	return nil
}

func (s *state) label(in instruction) error {
	list, err := s.pairs(in, "LABEL")
	if err != nil {
		return err
	}
	if s.config.Labels == nil {
		s.config.Labels = make(map[string]string, len(list))
	}
	for _, p := range list {
		s.config.Labels[p[0]] = p[1]
	}
	return nil
}

// one reads the single argument of USER, WORKDIR and STOPSIGNAL and expands it.
func (s *state) one(in instruction, name string) (string, error) {
	if in.rest == "" {
		return "", problemf("%s requires exactly one argument", name)
	}
	if err := in.noFlags(); err != nil {
		return "", err
	}
	return expand(in.rest, s.config.Env)
}

func (s *state) user(in instruction) error {
	user, err := s.one(in, "USER")
	if err != nil {
		return err
	}
	s.config.User = user
	return nil
}

func (s *state) workdir(in instruction) error {
	dir, err := s.one(in, "WORKDIR")
	if err != nil {
		return err
	}
	if dir == "" {
		return problemf("cannot normalize nothing")
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", s.config.WorkingDir, dir)
	}
	s.config.WorkingDir = path.Clean(dir)
	return nil
}

func (s *state) stopsignal(in instruction) error {
	name, err := s.one(in, "STOPSIGNAL")
	if err != nil {
		return err
	}
	if _, err := signal.ParseSignal(name); err != nil {
		return problemf("%s", err)
	}
	s.config.StopSignal = name
	return nil
}

func (s *state) volume(in instruction) error {
	words, isJSON, err := jsonOrText(in.rest)
	if err != nil {
		return err
	}
	if !isJSON {
		words = fields(in.rest)
	}
	if len(words) == 0 {
		return problemf("VOLUME requires at least one argument")
	}
	if err := in.noFlags(); err != nil {
		return err
	}
	for _, w := range words {
		dir, err := expand(w, s.config.Env)
		if err != nil {
			return err
		}
		if dir == "" {
			return problemf("VOLUME specified can not be an empty string")
		}
		if s.config.Volumes == nil {
			s.config.Volumes = map[string]struct{}{}
		}
		s.config.Volumes[dir] = struct{}{}
	}
	return nil
}

func (s *state) onbuild(in instruction) error {
	if in.rest == "" {
		return problemf("ONBUILD requires at least one argument")
	}
	if err := in.noFlags(); err != nil {
		return err
	}
	switch trigger := strings.ToUpper(fields(in.rest)[0]); trigger {
	case "ONBUILD":
		return problemf("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return problemf("%s isn't allowed as an ONBUILD trigger", trigger)
	}
	s.config.OnBuild = append(s.config.OnBuild, in.rest)
	return nil
}
