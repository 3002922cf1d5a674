package oci

import (
	"strings"

	"github.com/moby/moby/api/types/container"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is that of a container's process: the engine's variables first,
// those of links, then the container's.
func environment(c *container.Config, tty bool, links []string) []string {
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + c.Hostname}
	if tty {
		env = append(env, "TERM=xterm")
	}
	return mergeEnv(append(env, links...), c.Env)
}

// mergeEnv puts over into env: a variable that is there is replaced where it
// stands, others follow in their order. A name without "=" takes the variable
// away.
func mergeEnv(env, over []string) []string {
	at := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		at[name] = i
	}
	gone := map[int]bool{}
	for _, e := range over {
		name, _, set := strings.Cut(e, "=")
		i, there := at[name]
		switch {
		case !set && there:
			gone[i] = true
		case !set:
		case there:
			env[i] = e
			delete(gone, i)
		default:
			at[name] = len(env)
			env = append(env, e)
		}
	}
	out := make([]string, 0, len(env))
	for i, e := range env {
		if !gone[i] && e != "" {
			out = append(out, e)
		}
	}
	return out
}
