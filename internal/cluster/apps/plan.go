package apps

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
)

// Plan is what a change does, or would.
type Plan struct {
	App      string
	From, To uint64 // numbers; From is 0 of an app that is new
	Steps    []Step
}

// Step is one thing of a plan.
type Step struct {
	Action string   // create, change, replace, start, remove, keep
	Kind   string   // network, volume, secret, config, service
	Name   string   // in the app
	Why    []string `json:",omitempty"`
}

// The actions of a step.
const (
	actionCreate  = "create"
	actionChange  = "change"
	actionReplace = "replace"
	actionStart   = "start"
	actionRemove  = "remove"
	actionKeep    = "keep"
)

// plan compares what an app is, nil for none, with what it is to be.
func plan(name string, was *cluster.App, next *cluster.AppSpec, halted []*cluster.Task) *Plan {
	p := &Plan{App: name, Steps: []Step{}}
	var old cluster.AppSpec
	if was != nil {
		old = was.Spec
		p.From = old.Number
	}
	compare(p, "network", old.Networks, next.Networks, false, func(s cluster.NetworkSpec) bool { return s.External })
	for i := range p.Steps {
		st := &p.Steps[i]
		if is, want := old.Networks[st.Name], next.Networks[st.Name]; st.Kind == "network" && is.Differs(want) {
			st.Action, st.Why = actionReplace, append(differences(&is, &want), "what is on it is stopped first")
		}
	}
	compare(p, "volume", old.Volumes, next.Volumes, true, func(s cluster.VolumeSpec) bool { return s.External })
	compare(p, "secret", old.Secrets, next.Secrets, false, func(s cluster.SecretSpec) bool { return s.External })
	compare(p, "config", old.Configs, next.Configs, false, func(s cluster.ConfigSpec) bool { return s.External })
	stopped := map[string]int{}
	for _, t := range halted {
		service, _, _ := strings.Cut(strings.TrimPrefix(t.Name, name+"_"), ".")
		stopped[service]++
	}
	for _, part := range sortedKeys(next.Services) {
		s := next.Services[part]
		is, there := old.Services[part]
		step := Step{Action: actionKeep, Kind: "service", Name: part}
		switch {
		case !there:
			step.Action = actionCreate
		case is.Replaces(&s):
			step.Action, step.Why = actionReplace, differences(&is, &s)
		case !same(is, s):
			step.Action, step.Why = actionChange, differences(&is, &s)
		case stopped[part] > 0:
			step.Action, step.Why = actionStart, []string{fmt.Sprintf("%d stopped", stopped[part])}
		}
		p.Steps = append(p.Steps, step)
	}
	gone(p, "service", old.Services, next.Services, func(cluster.ServiceSpec) bool { return false })
	p.To = p.From + 1
	spec := *next
	spec.Number, old.Number = 0, 0
	if was != nil && same(old, spec) {
		p.To = p.From
	}
	return p
}

// compare adds the steps of a kind. What keeps data stays although nothing uses it. What is
// external is neither made nor removed.
func compare[S any](p *Plan, kind string, old, next map[string]S, stays bool, external func(S) bool) {
	for _, part := range sortedKeys(next) {
		is, there := old[part]
		step := Step{Action: actionKeep, Kind: kind, Name: part}
		switch {
		case !there && external(next[part]):
		case !there:
			step.Action = actionCreate
		case same(is, next[part]):
		case stays:
			step.Why = []string{"it stays as it was made; options are for a new one"}
		default:
			step.Action = actionChange
		}
		p.Steps = append(p.Steps, step)
	}
	if !stays {
		gone(p, kind, old, next, external)
	}
}

func gone[S any](p *Plan, kind string, old, next map[string]S, external func(S) bool) {
	for _, part := range sortedKeys(old) {
		if _, there := next[part]; !there && !external(old[part]) {
			p.Steps = append(p.Steps, Step{Action: actionRemove, Kind: kind, Name: part})
		}
	}
}

// same compares as the store will: an empty map or list is none.
func same[T any](a, b T) bool {
	var fa, fb any
	return decode(a, &fa) && decode(b, &fb) && reflect.DeepEqual(fa, fb)
}

func decode(from any, to *any) bool {
	b, err := json.Marshal(from)
	return err == nil && json.Unmarshal(b, to) == nil
}

// most is how many differences are told of one service.
const most = 8

// differences says in what two specs differ, in the words of compose files where they
// have some. Values of variables are not told: they may be secrets.
func differences[S any](is, want *S) []string {
	a, b := map[string]string{}, map[string]string{}
	flatten(*is, a)
	flatten(*want, b)
	names := map[string]string{}
	for path := range a {
		if b[path] != a[path] {
			names[word(path)] = path
		}
	}
	for path := range b {
		if b[path] != a[path] {
			names[word(path)] = path
		}
	}
	delete(names, "")
	var out []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if len(out) == most {
			return append(out, fmt.Sprintf("and %d more", len(names)-most))
		}
		path := names[name]
		if shown[name] {
			name += ": " + or(a[path], "none") + " → " + or(b[path], "none")
		}
		out = append(out, name)
	}
	return out
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// flatten gives a spec's values by their paths.
func flatten[S any](s S, out map[string]string) {
	var tree any
	if !decode(s, &tree) {
		return
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, inner := range v {
				walk(path+"/"+k, inner)
			}
		case nil:
		default:
			b, _ := json.Marshal(v)
			out[path] = strings.Trim(string(b), `"`)
		}
	}
	walk("", tree)
}

// shown are the words whose values are told.
var shown = map[string]bool{"image": true, "replicas": true, "hostname": true, "user": true, "working_dir": true}

// words are compose's for what specs are made of, the more special ones first.
var words = []struct{ path, word string }{
	{"/Number", ""}, {"/Labels/com.docker.compose.", ""}, {"/Task/Container/Labels/com.docker.compose.", ""},
	{"/Task/Container/Image", "image"}, {"/Task/ImageID", "what is in the image"}, {"/Mode/Replicated/Replicas", "replicas"}, {"/Mode", "mode"},
	{"/Task/Container/Env", "environment"}, {"/Task/Container/Cmd", "command"}, {"/Task/Container/Entrypoint", "entrypoint"},
	{"/Task/Container/Hostname", "hostname"}, {"/Task/Container/User", "user"}, {"/Task/Container/WorkingDir", "working_dir"},
	{"/Task/Container/Healthcheck", "healthcheck"}, {"/Task/Container/Labels", "labels"}, {"/Labels", "labels"},
	{"/Task/Host/Mounts", "volumes"}, {"/Task/Host/Binds", "volumes"}, {"/Ports", "ports"}, {"/Networks", "networks"},
	{"/Task/Secrets", "secrets"}, {"/Task/Configs", "configs"}, {"/Task/Needs", "depends_on"}, {"/Task/PostStart", "post_start"}, {"/Task/PreStop", "pre_stop"}, {"/Task/Restart", "restart"},
	{"/Task/Host/Resources", "resources"}, {"/Update", "update_config"}, {"/Rollback", "rollback_config"}, {"/Task/Force", "made anew"},
	{"/Create/IPAM", "ipam"}, {"/Create/Options", "driver_opts"}, {"/Create/EnableIPv4", "enable_ipv4"}, {"/Create/EnableIPv6", "enable_ipv6"},
	{"/Create/Labels", "labels"}, {"/Made", ""}, {"/Task/Placement", "placement"}, {"/Task/Reserved", "resources"}, {"/Halted", "not started"},
}

// word is what users call what is at a path; "" is nothing of theirs.
func word(path string) string {
	for _, w := range words {
		if strings.HasPrefix(path, w.path) {
			return w.word
		}
	}
	return strings.ToLower(path[strings.LastIndexByte(path, '/')+1:])
}
