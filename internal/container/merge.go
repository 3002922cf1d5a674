package container

import (
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
)

// mergeImage puts what the image says where the client said nothing.
func mergeImage(c *container.Config, img *dockerspec.DockerOCIImage) {
	from := &img.Config
	if c.User == "" {
		c.User = from.User
	}
	for port := range from.ExposedPorts {
		if p, err := apinetwork.ParsePort(port); err == nil {
			if c.ExposedPorts == nil {
				c.ExposedPorts = apinetwork.PortSet{}
			}
			c.ExposedPorts[p] = struct{}{}
		}
	}
	c.Env = mergeEnv(from.Env, c.Env)
	for k, v := range from.Labels {
		if _, ok := c.Labels[k]; !ok {
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[k] = v
		}
	}
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = from.Cmd
		}
		if c.Entrypoint == nil {
			c.Entrypoint = from.Entrypoint
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if c.WorkingDir == "" {
		c.WorkingDir = from.WorkingDir
	}
	if len(c.Volumes) == 0 {
		c.Volumes = nil
	}
	for v := range from.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[v] = struct{}{}
	}
	if c.StopSignal == "" {
		c.StopSignal = from.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = from.Shell
	}
	mergeHealth(c, from.Healthcheck)
}

// mergeEnv adds the image's variables that the client does not set to its own.
func mergeEnv(img, own []string) []string {
	set := make(map[string]bool, len(own))
	for _, kv := range own {
		set[envName(kv)] = true
	}
	if len(img)+len(own) == 0 {
		return nil // as Docker shows it
	}
	out := append(make([]string, 0, len(img)+len(own)), own...)
	for _, kv := range img {
		if !set[envName(kv)] {
			out = append(out, kv)
		}
	}
	return out
}

func envName(kv string) string {
	for i := range len(kv) {
		if kv[i] == '=' {
			return kv[:i]
		}
	}
	return kv
}

// mergeHealth completes the client's health check by the image's.
func mergeHealth(c *container.Config, img *container.HealthConfig) {
	if img == nil {
		return
	}
	if c.Healthcheck == nil {
		c.Healthcheck = img
		return
	}
	h := *c.Healthcheck
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	if h.Interval == 0 {
		h.Interval = img.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = img.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = img.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = img.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
	c.Healthcheck = &h
}

// copyConfig and copyHostConfig copy what completion changes, so that a
// caller's value stays as it was.
func copyConfig(c *container.Config) *container.Config {
	out := *c
	out.Labels = cloneMap(c.Labels)
	out.ExposedPorts = cloneMap(c.ExposedPorts)
	out.Volumes = cloneMap(c.Volumes)
	return &out
}

func copyHostConfig(h *container.HostConfig) *container.HostConfig {
	out := *h
	out.LogConfig.Config = cloneMap(h.LogConfig.Config)
	return &out
}

func cloneMap[K comparable, V any](in map[K]V) map[K]V {
	if in == nil {
		return nil
	}
	out := make(map[K]V, len(in))
	for k, v := range in {
		out[k] = v
	}
	return out
}
