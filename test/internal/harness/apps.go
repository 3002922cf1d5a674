package harness

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// App is what an app is to be, as tests write it.
type App struct {
	Name     string
	Services map[string]AppService
	Volumes  []string          // by their names in the app
	Secrets  map[string]string // contents, by their names in the app
	Networks []string          // beside "default"
	Internal bool              // "default" is: a network of other options than one that is not
	Driver   string            // of its networks; "": bridge
}

// AppService is a service of an App.
type AppService struct {
	Image     string
	Cmd       []string
	Replicas  int      // 0 is 1
	Env       []string // "K=v"
	Health    string   // a command of the shell; "": no health check
	Volumes   map[string]string
	Anonymous string // where a volume without a name is
	Secrets   []AppSecret
	Networks  []string          // beside "default"
	Needs     map[string]string // services, and their conditions in compose's words
	Restart   string            // of compose's restart key; it counts when the container is let go
	Port      [2]int            // published, and the container's; 0: none
	StartNew  bool              // when it changes, the new one is started before the old one stops
}

// AppSecret is a secret as a service has it.
type AppSecret struct {
	Name     string
	UID, GID string
	Mode     uint32
}

type object = map[string]any

// JSON is the document that PUT /escale/apps/{name} takes.
func (a App) JSON() json.RawMessage {
	label := func(kind, name string) object {
		return object{"com.docker.compose.project": a.Name, "com.docker.compose." + kind: name}
	}
	networks, volumes, secrets, services := object{}, object{}, object{}, object{}
	for _, n := range append([]string{"default"}, a.Networks...) {
		networks[n] = object{"Name": a.Name + "_" + n, "Create": object{"Driver": cmp.Or(a.Driver, "bridge"), "Internal": a.Internal && n == "default", "Labels": label("network", n)}}
	}
	for _, v := range a.Volumes {
		volumes[v] = object{"Name": a.Name + "_" + v, "Labels": label("volume", v)}
	}
	for s, data := range a.Secrets {
		secrets[s] = object{"Data": []byte(data)}
	}
	for name, s := range a.Services {
		services[name] = a.service(name, s)
	}
	b, err := json.Marshal(object{"Services": services, "Networks": networks, "Volumes": volumes, "Secrets": secrets})
	if err != nil {
		panic(err) // maps and strings
	}
	return b
}

func (a App) service(name string, s AppService) object {
	config := object{
		"Image": s.Image, "Cmd": s.Cmd, "Env": s.Env,
		"Labels": object{"com.docker.compose.project": a.Name, "com.docker.compose.service": name, "com.docker.compose.oneoff": "False"},
	}
	if s.Health != "" {
		config["Healthcheck"] = object{"Test": []string{"CMD-SHELL", s.Health}, "Interval": 500 * time.Millisecond, "Timeout": 10 * time.Second, "StartPeriod": time.Minute, "StartInterval": 100 * time.Millisecond}
	}
	if s.Anonymous != "" {
		config["Volumes"] = object{s.Anonymous: object{}}
	}
	var mounts, secrets, networks, needs, ports []object
	for v, at := range s.Volumes {
		mounts = append(mounts, object{"Type": "volume", "Source": a.Name + "_" + v, "Target": at})
	}
	for _, x := range s.Secrets {
		secrets = append(secrets, object{"Name": x.Name, "Target": "/run/secrets/" + x.Name, "UID": x.UID, "GID": x.GID, "Mode": x.Mode})
	}
	for _, n := range append([]string{"default"}, s.Networks...) {
		networks = append(networks, object{"Network": a.Name + "_" + n, "Settings": object{"Aliases": []string{name}}})
	}
	for other, condition := range s.Needs {
		needs = append(needs, object{"Service": a.Name + "_" + other, "Condition": condition})
	}
	if s.Port[0] != 0 {
		ports = append(ports, object{"Proto": "tcp", "Target": s.Port[1], "Published": s.Port[0], "Address": "127.0.0.1"})
	}
	return object{
		"Mode": object{"Replicated": object{"Replicas": max(s.Replicas, 1)}}, "Networks": networks, "Ports": ports,
		"Update": object{"Parallelism": 1, "StartFirst": s.StartNew, "OnFailure": "rollback", "Monitor": time.Second},
		"Task": object{
			"Container": config, "Host": object{"Mounts": mounts, "RestartPolicy": object{"Name": s.Restart}}, "Secrets": secrets, "Needs": needs,
			"Restart": object{"Condition": "any"},
		},
	}
}

// ContainerName is the name of the n-th container of a service.
func (a App) ContainerName(service string, n int) string {
	return fmt.Sprintf("%s-%s-%d", a.Name, service, n)
}
