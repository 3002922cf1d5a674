package table

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

func TestPlainLeavesNoAddress(t *testing.T) {
	for _, v := range []any{container.InspectResponse{}, image.InspectResponse{}, network.Inspect{}, swarm.Node{}, swarm.Service{}, system.Info{}} {
		p := Plain(reflect.TypeOf(v))
		if at := address(p, p.String(), map[reflect.Type]bool{}); at != "" {
			t.Errorf("%T: %s", v, at)
		}
		if err := json.Unmarshal([]byte(`{}`), reflect.New(p).Interface()); err != nil {
			t.Errorf("%T: %v", v, err)
		}
	}
}

func address(t reflect.Type, at string, seen map[reflect.Type]bool) string {
	if seen[t] {
		return ""
	}
	seen[t] = true
	if strings.HasPrefix(t.PkgPath(), "net/netip") || t == reflect.TypeFor[network.HardwareAddr]() {
		return "holds " + t.String()
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return address(t.Elem(), at, seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if s := address(t.Field(i).Type, at, seen); s != "" {
				return t.Field(i).Name + " " + s
			}
		}
	}
	return ""
}

func TestInspectTemplates(t *testing.T) {
	raw := []byte(`{"Id":"abc","Name":"/n","State":{"Running":true,"ExitCode":3},
		"HostConfig":{"Memory":64,"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}},
		"NetworkSettings":{"IPAddress":"172.17.0.2","Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]},
		"Networks":{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":"","MacAddress":"02:42:ac:11:00:02"}}}}`)
	for _, c := range []struct{ format, want string }{
		{"{{.Id}} {{.Name}}", "abc /n"},
		{"{{.ID}}", "abc"},
		{"{{.State.ExitCode}}", "3"},
		{"{{.HostConfig.Memory}}", "64"},
		{"{{.NetworkSettings.IPAddress}}", "172.17.0.2"},
		{"{{.NetworkSettings.Ports}}", "map[80/tcp:[{0.0.0.0 8080}]]"},
		{"{{.HostConfig.PortBindings}}", "map[80/tcp:[{ 8080}]]"},
		{`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`, "8080"},
		{"{{range .NetworkSettings.Networks}}{{.IPAddress}}|{{.GlobalIPv6Address}}|{{.MacAddress}}{{end}}", "172.17.0.2||02:42:ac:11:00:02"},
		{"{{with .NetworkSettings.Networks.bridge}}{{if .GlobalIPv6Address}}six{{else}}four{{end}}{{end}}", "four"},
		{`{{eq .NetworkSettings.Networks.bridge.IPAddress "172.17.0.2"}}`, "true"},
		{"{{json .State.Running}}", "true"},
		{"{{.NetworkSettings.Gateway}}{{if .NetworkSettings.IPAddress}}has{{end}}", "has"},
	} {
		in, err := NewInspector(c.format)
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Add(raw, container.InspectResponse{}); err != nil {
			t.Errorf("%s: %v", c.format, err)
			continue
		}
		var b strings.Builder
		if err := in.Flush(&b); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(b.String(), "\n"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.format, got, c.want)
		}
	}
}
