package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// translated sends a create and returns what reached the engine, as JSON.
func translated(t *testing.T, version, body string) (config, host, networks, answer string) {
	t.Helper()
	r := newRig(t)
	_, _, answer = r.do("POST", "/v"+version+"/containers/create", body)
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return text(r.con.created.Config), text(r.con.created.HostConfig), text(r.con.created.Networking), answer
}

func TestCreateByVersion(t *testing.T) {
	tests := []struct {
		name, version, body string
		host, networks      []string // parts that are there, or not with "!" before
		answer              string
	}{
		{"defaults of 1.39", "1.39", `{"Image":"a"}`, []string{`"IpcMode":"shareable"`, `"CgroupnsMode":"host"`}, nil, `"Warnings":["careful"]`},
		{"defaults of 1.40", "1.40", `{"Image":"a"}`, []string{`"IpcMode":""`, `"CgroupnsMode":"host"`}, nil, `"Id"`},
		{"defaults of 1.41", "1.41", `{"Image":"a","HostConfig":{"ConsoleSize":[3,4]}}`, []string{`"CgroupnsMode":""`, `"ConsoleSize":[0,0]`}, nil, `"Id"`},
		{"own words stay", "1.24", `{"Image":"a","HostConfig":{"IpcMode":"private","CgroupnsMode":"private","Init":true}}`, []string{`"IpcMode":"private"`, `"CgroupnsMode":"private"`, `"Init":true`}, nil, `"Id"`},
		{"console size", "1.42", `{"Image":"a","HostConfig":{"ConsoleSize":[3,4]}}`, []string{`"ConsoleSize":[3,4]`}, nil, `"Id"`},
		{"annotations", "1.42", `{"Image":"a","HostConfig":{"Annotations":{"a":"b"}}}`, []string{`!"Annotations"`}, nil, `"Id"`},
		{"annotations", "1.43", `{"Image":"a","HostConfig":{"Annotations":{"a":"b"}}}`, []string{`"Annotations":{"a":"b"}`}, nil, `"Id"`},
		{"umask", "1.55", `{"Image":"a","HostConfig":{"Umask":18}}`, []string{`!"Umask"`}, nil, `"Id"`},
		{"umask", "1.56", `{"Image":"a","HostConfig":{"Umask":18}}`, []string{`"Umask":18`}, nil, `"Id"`},
		{"pids limit", "1.56", `{"Image":"a","HostConfig":{"PidsLimit":-1}}`, []string{`"PidsLimit":null`}, nil, `"Id"`},
		{"the client removes", "1.24", `{"Image":"a","HostConfig":{"AutoRemove":true}}`, []string{`"AutoRemove":false`}, nil, `"Id"`},
		{"the engine removes", "1.25", `{"Image":"a","HostConfig":{"AutoRemove":true}}`, []string{`"AutoRemove":true`}, nil, `"Id"`},
		{"links", "1.24", `{"Image":"a","HostConfig":{"Links":["db:db"]}}`, []string{`"Links":["db:db"]`}, nil, `"Id"`},
		{"kernel memory", "1.40", `{"Image":"a","HostConfig":{"KernelMemory":4194304}}`, nil, nil, `"Warnings":["Kernel memory limits are not supported, HostConfig.KernelMemory was ignored.","careful"]`},
		{"kernel memory", "1.42", `{"Image":"a","HostConfig":{"KernelMemory":4194304}}`, nil, nil, `"Warnings":["careful"]`},
		{"recursive read-only", "1.43", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}]}}`, []string{`"ReadOnlyNonRecursive":true`}, nil, `"Id"`},
		{"recursive read-only", "1.44", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true}]}}`, []string{`!"ReadOnlyNonRecursive"`}, nil, `"Id"`},
		{"force recursive", "1.43", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","BindOptions":{"ReadOnlyForceRecursive":true}}]}}`, nil, nil, `{"message":"BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"}`},
		{"options of another type", "1.41", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"volume","BindOptions":{"Propagation":"shared"},"TmpfsOptions":{"SizeBytes":1}}]}}`, []string{`!"BindOptions"`, `!"TmpfsOptions"`}, nil, `"Id"`},
		{"create mountpoint", "1.41", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","BindOptions":{"CreateMountpoint":true,"NonRecursive":true}}]}}`, []string{`!"CreateMountpoint"`, `"NonRecursive":true`}, nil, `"Id"`},
		{"non recursive", "1.39", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"bind","BindOptions":{"NonRecursive":true}}]}}`, []string{`!"NonRecursive":true`}, nil, `"Id"`},
		{"subpath", "1.44", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"volume","VolumeOptions":{"Subpath":"x"}}]}}`, nil, nil, `{"message":"VolumeOptions.Subpath needs API v1.45 or newer"}`},
		{"tmpfs options", "1.45", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"tmpfs","TmpfsOptions":{"Options":[["exec"]]}}]}}`, []string{`!"exec"`}, nil, `"Id"`},
		{"image mount", "1.47", `{"Image":"a","HostConfig":{"Mounts":[{"Type":"image","Source":"b"}]}}`, nil, nil, `{"message":"mount type \"Image\" needs API v1.48 or newer"}`},
		{"volume driver", "1.48", `{"Image":"a","HostConfig":{"VolumeDriver":"x","Mounts":[{"Type":"volume"}]}}`, nil, nil, `WARNING: the container-wide volume-driver`},
		{"endpoints", "1.43", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"b":null,"a":{}}}}`, nil, nil, `{"message":"Container cannot be created with multiple network endpoints: a, b"}`},
		{"endpoint MAC", "1.43", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"a":{"MacAddress":"02:42:ac:11:00:02"}}}}`, nil, []string{`"MacAddress":""`}, `"Id"`},
		{"gateway priority", "1.47", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"a":{"GwPriority":3}}}}`, nil, []string{`"GwPriority":0`}, `"Id"`},
		{"gateway priority", "1.48", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"a":{"GwPriority":3}}}}`, nil, []string{`"GwPriority":3`}, `"Id"`},
		{"MAC", "1.24", `{"Image":"a","MacAddress":"02:42:ac:11:00:02"}`, nil, []string{`"bridge":{`, `"MacAddress":"02:42:ac:11:00:02"`}, `"Warnings":["careful"]`},
		{"MAC", "1.44", `{"Image":"a","MacAddress":"02:42:ac:11:00:02","HostConfig":{"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"n":{}}}}`, nil, []string{`"n":{`, `"MacAddress":"02:42:ac:11:00:02"`}, `The container-wide MacAddress field is now deprecated.`},
		{"MAC of the default network", "1.44", `{"Image":"a","MacAddress":"02:42:ac:11:00:02","NetworkingConfig":{"EndpointsConfig":{"default":{}}}}`, nil, []string{`"default":{`, `"MacAddress":"02:42:ac:11:00:02"`, `!"bridge"`}, `"Id"`},
		{"MAC elsewhere", "1.44", `{"Image":"a","MacAddress":"02:42:ac:11:00:02","NetworkingConfig":{"EndpointsConfig":{"n":{}}}}`, nil, nil, `{"message":"if a container-wide MAC address is specified`},
		{"two MACs", "1.44", `{"Image":"a","MacAddress":"02:42:ac:11:00:02","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:ac:11:00:03"}}}}`, nil, nil, `{"message":"the container-wide MAC address must match`},
		{"MAC of a host", "1.41", `{"Image":"a","MacAddress":"02:42:ac:11:00:02","HostConfig":{"NetworkMode":"host"}}`, nil, nil, `{"message":"conflicting options: mac-address and the network mode"}`},
		{"no MAC", "1.41", `{"Image":"a","MacAddress":"x"}`, nil, nil, `{"message":"invalid MAC address \"x\"`},
		{"MAC no more", "1.52", `{"Image":"a","MacAddress":"02:42:ac:11:00:02"}`, nil, nil, `{"message":"container-wide MAC address no longer supported`},
		{"empty bindings", "1.51", `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[]}}}`, []string{`"80/tcp":[{"HostIp":"","HostPort":""}]`}, nil, `"Warnings":["careful"]`},
		{"empty bindings", "1.52", `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[]}}}`, []string{`"80/tcp":[{"HostIp":"","HostPort":""}]`}, nil, `Following container port(s) have an empty list of port-bindings: 80/tcp.`},
		{"empty bindings", "1.53", `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[]}}}`, []string{`"PortBindings":{}`}, nil, `"Warnings":["careful"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.version, func(t *testing.T) {
			_, host, networks, answer := translated(t, tt.version, tt.body)
			for _, set := range []struct {
				have string
				want []string
			}{{host, tt.host}, {networks, tt.networks}, {answer, []string{tt.answer}}} {
				for _, w := range set.want {
					part, not := strings.CutPrefix(w, "!")
					if strings.Contains(set.have, part) == not {
						t.Errorf("%s\nin %s", w, set.have)
					}
				}
			}
		})
	}
}

func TestCreateHealth(t *testing.T) {
	for version, want := range map[string]bool{"1.43": false, "1.44": true} {
		config, _, _, _ := translated(t, version, `{"Image":"a","Healthcheck":{"Test":["CMD","x"],"StartInterval":5000000}}`)
		if strings.Contains(config, "StartInterval") != want {
			t.Errorf("%s: %s", version, config)
		}
	}
}

func TestCreatePlatform(t *testing.T) {
	for query, want := range map[string]string{
		"/v1.41/containers/create?platform=linux/aarch64": "linux/arm64",
		"/v1.40/containers/create?platform=linux/arm64":   "",
		"/containers/create":                              "",
	} {
		r := newRig(t)
		r.do("POST", query, `{"Image":"a"}`)
		if r.con.created.Platform != want {
			t.Errorf("%s: %q", query, r.con.created.Platform)
		}
	}
}

func TestExecInspect(t *testing.T) {
	r := newRig(t)
	code := 3
	r.con.exec.ID, r.con.exec.ExitCode, r.con.exec.Arguments, r.con.exec.Container = "e", &code, []string{"-c"}, "c"
	_, _, body := r.do("GET", "/exec/e/json", "")
	if want := `"ExitCode":3,"ProcessConfig":{"tty":false,"entrypoint":"","arguments":["-c"],"privileged":false}`; !strings.Contains(body, want) || !strings.Contains(body, fmt.Sprintf(`"ContainerID":%q`, "c")) {
		t.Error(body)
	}
}
