package compose

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
)

// keyCase is a key of the specification: what stands in a file, and what the spec of the
// app must say because of it. A want that begins with ! is a refusal.
type keyCase struct{ yaml, want string }

// serviceKeys are what services may have, but for build, which is the client's.
var serviceKeys = map[string]keyCase{
	"annotations":         {`{a.b: c}`, `"Annotations":{"a.b":"c"}`},
	"attach":              {`false`, ``}, // the client's: up shows no logs of it
	"blkio_config":        {`{weight: 300, weight_device: [{path: /dev/x, weight: 20}], device_read_bps: [{path: /dev/x, rate: 1k}]}`, `"BlkioWeight":300,"BlkioWeightDevice":[{"Path":"/dev/x","Weight":20}],"BlkioDeviceReadBps":[{"Path":"/dev/x","Rate":1024}]`},
	"build":               {`.`, `"Image":"i"`},
	"cap_add":             {`[NET_ADMIN]`, `"CapAdd":["NET_ADMIN"]`},
	"cap_drop":            {`[ALL]`, `"CapDrop":["ALL"]`},
	"cgroup":              {`private`, `"CgroupnsMode":"private"`},
	"cgroup_parent":       {`/up`, `"CgroupParent":"/up"`},
	"command":             {`echo "a b"`, `"Cmd":["echo","a b"]`},
	"configs":             {`[{source: c, target: /c, uid: "5", gid: "6", mode: 0400}]`, `"Configs":[{"Name":"c","Target":"/c","UID":"5","GID":"6","Mode":256}]`},
	"container_name":      {`mine`, `"Name":"mine"`},
	"cpu_count":           {`2`, `"CpuCount":2`},
	"cpu_percent":         {`50`, `"CpuPercent":50`},
	"cpu_period":          {`1000`, `"CpuPeriod":1000`},
	"cpu_quota":           {`500`, `"CpuQuota":500`},
	"cpu_rt_period":       {`1000`, `"CpuRealtimePeriod":1000`},
	"cpu_rt_runtime":      {`900`, `"CpuRealtimeRuntime":900`},
	"cpu_shares":          {`7`, `"CpuShares":7`},
	"cpus":                {`1.5`, `"NanoCpus":1500000000`},
	"cpuset":              {`"0,1"`, `"CpusetCpus":"0,1"`},
	"credential_spec":     {`{file: x}`, `!credential_spec`},
	"depends_on":          {`{b: {condition: service_healthy, restart: true, required: false}}`, `"Needs":[{"Service":"p_b","Condition":"service_healthy","Restart":true,"Optional":true}]`},
	"develop":             {`{watch: [{path: ., action: restart}]}`, ``}, // the client's: watch
	"device_cgroup_rules": {`["c 1:3 mr"]`, `"DeviceCgroupRules":["c 1:3 mr"]`},
	"devices":             {`["/dev/a:/dev/b:r", "vendor/class=x"]`, `"DeviceIDs":["vendor/class=x"]`},
	"dns":                 {`9.9.9.9`, `"Dns":["9.9.9.9"]`},
	"dns_opt":             {`[use-vc]`, `"DnsOptions":["use-vc"]`},
	"dns_search":          {`[a.example]`, `"DnsSearch":["a.example"]`},
	"domainname":          {`d.example`, `"Domainname":"d.example"`},
	"entrypoint":          {`[/e, x]`, `"Entrypoint":["/e","x"]`},
	"env_file":            {`[{path: e.env, required: true}, {path: nosuch, required: false}]`, `"FROM_FILE=1"`},
	"environment":         {`{NUL: , A: 1, WHO: }`, `"Env":["A=1","WHO=me","NUL"]`},
	"expose":              {`["90/udp"]`, `"90/udp":{}`},
	"extends":             {`{service: b}`, `"Image":"i"`},
	"external_links":      {`["x:y"]`, `"x:y"`},
	"extra_hosts":         {`["h:1.2.3.4"]`, `"h:1.2.3.4"`},
	"gpus":                {`all`, `"Count":-1`},
	"group_add":           {`[mail, 5]`, `"GroupAdd":["mail","5"]`},
	"healthcheck":         {`{test: t, interval: 1s, timeout: 2s, retries: 3, start_period: 4s, start_interval: 5s}`, `"Test":["CMD-SHELL","t"],"Interval":1000000000,"Timeout":2000000000,"StartPeriod":4000000000,"StartInterval":5000000000,"Retries":3`},
	"hostname":            {`h`, `"Hostname":"h"`},
	"image":               {``, `"Image":"i"`},
	"init":                {`true`, `"Init":true`},
	"ipc":                 {`service:b`, `"IpcMode":"container:p-b-1"`},
	"isolation":           {`default`, `"Isolation":"default"`},
	"label_file":          {`l.env`, `"from.file":"1"`},
	"labels":              {`[a=b]`, `"a":"b"`},
	"links":               {`["b:other"]`, `"p-b-1:other"`},
	"logging":             {`{driver: json-file, options: {max-size: 1m}}`, `"Type":"json-file","Config":{"max-size":"1m"}`},
	"mac_address":         {`02:42:00:00:00:01`, `"MacAddress":"02:42:00:00:00:01"`},
	"mem_limit":           {`1m`, `"Memory":1048576`},
	"mem_reservation":     {`1m`, `"MemoryReservation":1048576`},
	"mem_swappiness":      {`5`, `"MemorySwappiness":5`},
	"memswap_limit":       {`2m`, `"MemorySwap":2097152`},
	"models":              {`[m]`, `!models`},
	"network_mode":        {`host`, `"NetworkMode":"host"`},
	"networks":            {`{n: {aliases: [x], ipv4_address: 10.1.0.5, mac_address: "02:42:00:00:00:02", interface_name: eth7, gw_priority: 2, link_local_ips: [169.254.8.8], driver_opts: {o: v}, priority: 5, use_service_name_alias: false}}`, `"com.docker.network.endpoint.ifname":"eth7"`},
	"oom_kill_disable":    {`true`, `"OomKillDisable":true`},
	"oom_score_adj":       {`100`, `"OomScoreAdj":100`},
	"pid":                 {`host`, `"PidMode":"host"`},
	"pids_limit":          {`9`, `"PidsLimit":9`},
	"platform":            {`linux/amd64`, `"Platform":"linux/amd64"`},
	"ports":               {`["8000-8001:90-91", {target: 92, published: "9000", host_ip: 127.0.0.1, protocol: udp, mode: host, name: n}]`, `{"Name":"n","Proto":"udp","Target":92,"Published":9000,"Address":"127.0.0.1","Host":true}`},
	"post_start":          {`[{command: [x, y], user: u, privileged: true, working_dir: /w, environment: {A: b}}]`, `"PostStart":[{"Command":["x","y"],"User":"u","Privileged":true,"WorkingDir":"/w","Env":["A=b"]}]`},
	"pre_start":           {`[{command: x}]`, `!pre_start`},
	"pre_stop":            {`[{command: x y}]`, `"PreStop":[{"Command":["x","y"]}]`},
	"privileged":          {`true`, `"Privileged":true`},
	"profiles":            {`[]`, ``}, // see TestLoad
	"provider":            {`{type: x}`, `!provider`},
	"pull_policy":         {`daily`, `"Pull":"daily"`},
	"pull_refresh_after":  {`24h`, ``}, // the client's, which pulls
	"read_only":           {`true`, `"ReadonlyRootfs":true`},
	"restart":             {`on-failure:3`, `"Restart":{"Condition":"on-failure","Delay":0,"Attempts":3,"Window":0}`},
	"runtime":             {`runc`, `"Runtime":"runc"`},
	"scale":               {`4`, `"Replicas":4`},
	"secrets":             {`[{source: s, target: t, uid: "5", gid: "6", mode: 0400}]`, `"Secrets":[{"Name":"s","Target":"/run/secrets/t","UID":"5","GID":"6","Mode":256}]`},
	"security_opt":        {`[no-new-privileges]`, `"SecurityOpt":["no-new-privileges"]`},
	"shm_size":            {`1m`, `"ShmSize":1048576`},
	"stdin_open":          {`true`, `"OpenStdin":true`},
	"stop_grace_period":   {`3s`, `"Grace":3000000000`},
	"stop_signal":         {`USR1`, `"StopSignal":"USR1"`},
	"storage_opt":         {`{size: 1G}`, `"StorageOpt":{"size":"1G"}`},
	"sysctls":             {`{net.core.somaxconn: 9}`, `"Sysctls":{"net.core.somaxconn":"9"}`},
	"tmpfs":               {`["/t:size=1m"]`, `"Tmpfs":{"/t":"size=1m"}`},
	"tty":                 {`true`, `"Tty":true`},
	"ulimits":             {`{nproc: 5, nofile: {soft: 6, hard: 7}}`, `"Ulimits":[{"Name":"nofile","Hard":7,"Soft":6},{"Name":"nproc","Hard":5,"Soft":5}]`},
	"umask":               {`18`, `"Umask":18`},
	"use_api_socket":      {`true`, `!use_api_socket`},
	"user":                {`u:g`, `"User":"u:g"`},
	"userns_mode":         {`host`, `"UsernsMode":"host"`},
	"uts":                 {`host`, `"UTSMode":"host"`},
	"volumes":             {`[{type: bind, source: /a, target: /b, read_only: true, bind: {propagation: rslave, create_host_path: false, recursive: disabled}}, {type: volume, source: v, target: /v, volume: {nocopy: true, subpath: s}}, {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 448}}, {type: image, source: x, target: /i, image: {subpath: y}}, "/c:/d:z"]`, `"Binds":["/c:/d:rw,z"]`},
	"volumes_from":        {`["b:ro", "container:x"]`, `"VolumesFrom":["p-b-1:ro","x"]`},
	"working_dir":         {`/w`, `"WorkingDir":"/w"`},
	"deploy":              {`{mode: global, endpoint_mode: dnsrr, labels: {d: l}, update_config: {parallelism: 2, delay: 1s, failure_action: continue, monitor: 3s, max_failure_ratio: 0.5, order: stop-first}, rollback_config: {parallelism: 0}, restart_policy: {condition: on-failure, delay: 1s, max_attempts: 2, window: 3s}, placement: {constraints: ["node.role == manager"], preferences: [{spread: node.labels.z}], max_replicas_per_node: 2}, resources: {limits: {cpus: "0.5", memory: 1m, pids: 3}, reservations: {cpus: "0.25", memory: 1m, generic_resources: [{discrete_resource_spec: {kind: g, value: 2}}], devices: [{capabilities: [gpu], count: 1}]}}}`, `"Update":{"Parallelism":2,"Delay":1000000000,"StartFirst":false,"OnFailure":"continue","Monitor":3000000000,"MaxFailureRatio":0.5}`},
}

// TestServiceKeys looks at each key that a service may have: it is honoured, or refused
// with its name. A key that the specification gets is missed here.
func TestServiceKeys(t *testing.T) {
	for _, key := range schemaKeys(t, "service", "container_spec", "workload_spec") {
		c, ok := serviceKeys[key]
		if !ok {
			t.Errorf("%s is in the specification and has no case here", key)
			continue
		}
		t.Run(key, func(t *testing.T) {
			image := "image: i, "
			if key == "provider" {
				image = ""
			}
			yaml := c.yaml
			if key != "image" {
				yaml = key + ": " + yaml
			} else {
				image, yaml = "image: i", ""
			}
			if key == "label_file" || key == "env_file" || key == "extends" {
				image = strings.Repeat(image, map[bool]int{true: 0, false: 1}[key == "extends"])
			}
			checkKey(t, "services:\n  a: {"+image+yaml+"}\n"+beside, c.want)
		})
	}
}

// beside is what cases refer to.
const beside = `  b: {image: i, healthcheck: {test: t}}
networks: {n: {ipam: {config: [{subnet: 10.1.0.0/16}]}}}
volumes: {v: {}}
secrets: {s: {environment: WHO}}
configs: {c: {content: x}}
models: {m: {model: x}}
`

func checkKey(t *testing.T, text, want string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"compose.yaml": text, "e.env": "FROM_FILE=1\n", "l.env": "from.file=1\n", "f": "file\n", "inc.yaml": "services: {more: {image: i}}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Load(t.Context(), Options{Files: []string{filepath.Join(dir, "compose.yaml")}, Name: "p", Env: []string{"WHO=me"}, Unused: true})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	spec, err := App(p, false)
	if refusal, no := strings.CutPrefix(want, "!"); no {
		if err == nil || !strings.Contains(err.Error(), refusal) || !strings.Contains(err.Error(), "compose.yaml:") {
			t.Errorf("%v; it is to be refused by file, line and name: %s", err, refusal)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	spec.Source = ""
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), want) {
		t.Errorf("want %s in\n%s", want, b)
	}
}

// schemaKeys are the keys of definitions of the specification.
func schemaKeys(t *testing.T, definitions ...string) (keys []string) {
	t.Helper()
	var s struct {
		Properties map[string]any
		Defs       map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(schema.Schema), &s); err != nil {
		t.Fatal(err)
	}
	for _, name := range definitions {
		props := s.Defs[name].Properties
		if name == "" {
			props = s.Properties
		}
		if len(props) == 0 {
			t.Fatalf("the specification has no %q any more", name)
		}
		for key := range props {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// TestOtherKeys looks at what stands beside services.
func TestOtherKeys(t *testing.T) {
	const a = "services: {a: {image: i, networks: [n]}}\n"
	for definition, cases := range map[string]map[string]keyCase{
		"": {
			"version":  {"version: 3\nservices: {a: {image: i}}", `"Image":"i"`},
			"name":     {"name: other\nservices: {a: {image: i}}", `"Image":"i"`},
			"include":  {"include: [inc.yaml]\nservices: {a: {image: i}}", `"more":{`},
			"services": {"services: {a: {image: i}}", `"Image":"i"`},
			"models":   {"services: {a: {image: i, models: [m]}}\nmodels: {m: {model: x}}", "!models"},
			"networks": {a + "networks: {n: {}}", `"n":{"Name":"p_n"`},
			"volumes":  {"services: {a: {image: i}}\nvolumes: {v: {}}", `"v":{"Name":"p_v"`},
			"secrets":  {"services: {a: {image: i}}\nsecrets: {s: {file: ./f}}", `"s":{"Name":"p_s","Data":"ZmlsZQo="}`},
			"configs":  {"services: {a: {image: i}}\nconfigs: {c: {content: x}}", `"c":{"Name":"p_c","Data":"eA=="}`},
			"jobs":     {"services: {a: {image: i}}\njobs: {j: {image: i, triggers: {schedule: [{cron: \"0 3 * * *\"}]}}}", "!jobs are not possible"},
		},
		"network": {
			"name":        {a + "networks: {n: {name: own}}", `"Name":"own"`},
			"driver":      {a + "networks: {n: {driver: macvlan}}", `"Driver":"macvlan"`},
			"driver_opts": {a + "networks: {n: {driver_opts: {o: 5}}}", `"Options":{"o":"5"}`},
			"ipam":        {a + "networks: {n: {ipam: {driver: d, options: {x: y}, config: [{subnet: 10.1.0.0/16, ip_range: 10.1.2.0/24, gateway: 10.1.0.9, aux_addresses: {h: 10.1.0.8}}]}}}", `"IPAM":{"Driver":"d","Options":{"x":"y"},"Config":[{"Subnet":"10.1.0.0/16","IPRange":"10.1.2.0/24","Gateway":"10.1.0.9","AuxiliaryAddresses":{"h":"10.1.0.8"}}]}`},
			"external":    {a + "networks: {n: {external: true, name: there}}", `"n":{"Name":"there","External":true}`},
			"internal":    {a + "networks: {n: {internal: true}}", `"Internal":true`},
			"enable_ipv4": {a + "networks: {n: {enable_ipv4: false}}", `"EnableIPv4":false`},
			"enable_ipv6": {a + "networks: {n: {enable_ipv6: true}}", `"EnableIPv6":true`},
			"attachable":  {a + "networks: {n: {attachable: true}}", `"Attachable":true`},
			"labels":      {a + "networks: {n: {labels: {l: m}}}", `"l":"m"`},
		},
		"volume": {
			"name":        {"services: {a: {image: i}}\nvolumes: {v: {name: own}}", `"Name":"own"`},
			"driver":      {"services: {a: {image: i}}\nvolumes: {v: {driver: d}}", `"Driver":"d"`},
			"driver_opts": {"services: {a: {image: i}}\nvolumes: {v: {driver_opts: {o: 5}}}", `"Options":{"o":"5"}`},
			"external":    {"services: {a: {image: i}}\nvolumes: {v: {external: true, name: there}}", `"v":{"Name":"there","External":true`},
			"labels":      {"services: {a: {image: i}}\nvolumes: {v: {labels: {l: m}}}", `"l":"m"`},
		},
		"secret": {
			"name":            {"services: {a: {image: i}}\nsecrets: {s: {name: own, file: ./f}}", `"Name":"own"`},
			"environment":     {"services: {a: {image: i}}\nsecrets: {s: {environment: WHO}}", `"Data":"bWU="`},
			"file":            {"services: {a: {image: i}}\nsecrets: {s: {file: ./f}}", `"Data":"ZmlsZQo="`},
			"external":        {"services: {a: {image: i, secrets: [s]}}\nsecrets: {s: {external: true}}", "!external"},
			"labels":          {"services: {a: {image: i}}\nsecrets: {s: {file: ./f, labels: {l: m}}}", `"Data":"ZmlsZQo="`}, // nobody lists them
			"driver":          {"services: {a: {image: i}}\nsecrets: {s: {file: ./f, driver: d}}", "!driver"},
			"driver_opts":     {"services: {a: {image: i}}\nsecrets: {s: {file: ./f, driver: d, driver_opts: {o: p}}}", "!driver"},
			"template_driver": {"services: {a: {image: i}}\nsecrets: {s: {file: ./f, template_driver: golang}}", "!template_driver"},
		},
		"config": {
			"name":            {"services: {a: {image: i}}\nconfigs: {c: {name: own, content: x}}", `"Name":"own"`},
			"content":         {"services: {a: {image: i}}\nconfigs: {c: {content: \"${WHO}\"}}", `"Data":"bWU="`},
			"environment":     {"services: {a: {image: i}}\nconfigs: {c: {environment: WHO}}", `"Data":"bWU="`},
			"file":            {"services: {a: {image: i}}\nconfigs: {c: {file: ./f}}", `"Data":"ZmlsZQo="`},
			"external":        {"services: {a: {image: i, configs: [c]}}\nconfigs: {c: {external: true}}", "!external"},
			"labels":          {"services: {a: {image: i}}\nconfigs: {c: {content: x, labels: {l: m}}}", `"Data":"eA=="`}, // nobody lists them
			"template_driver": {"services: {a: {image: i}}\nconfigs: {c: {content: x, template_driver: golang}}", "!template_driver"},
		},
	} {
		for _, key := range schemaKeys(t, definition) {
			c, ok := cases[key]
			if !ok {
				t.Errorf("%s %s is in the specification and has no case here", definition, key)
				continue
			}
			t.Run(definition+"."+key, func(t *testing.T) { checkKey(t, c.yaml, c.want) })
		}
	}
}

// What a file leaves open has its meaning: docs/decisions/0016.
func TestLeftOpen(t *testing.T) {
	for name, c := range map[string]keyCase{
		"nothing":               {"", `"Restart":{"Condition":"on-failure","Delay":0,"Attempts":0,"Window":0}`},
		"restart no":            {`restart: "no"`, `"Restart":{"Condition":"none"`},
		"always":                {"restart: always", `"Restart":{"Condition":"any"`},
		"unless-stopped":        {"restart: unless-stopped", `"Restart":{"Condition":"any"`},
		"own policy":            {"restart: unless-stopped", `"RestartPolicy":{"Name":"unless-stopped"`},
		"deploy's policy":       {"deploy: {restart_policy: {condition: none}}", `"RestartPolicy":{"Name":"no"`},
		"bad policy":            {"restart: sometimes", "!restart"},
		"start first":           {"", `"StartFirst":true,"OnFailure":"rollback"`},
		"rollback":              {"deploy: {update_config: {parallelism: 3}}", `"Update":{"Parallelism":3,"Delay":0,"StartFirst":true,"OnFailure":"rollback"`},
		"a name":                {"container_name: xx", `"StartFirst":false`},
		"a volume":              {"volumes: [\"vol:/v\"]", `"StartFirst":false`},
		"a volume that is read": {"volumes: [\"vol:/v:ro\"]", `"StartFirst":true`},
		"an address":            {"networks: {n: {ipv4_address: 10.1.0.5}}", `"StartFirst":false`},
		"a port of the host":    {"ports: [{target: 80, published: \"80\", mode: host}]", `"StartFirst":false`},
		"a port of a range":     {"ports: [\"8000-8002:80\"]", `"StartFirst":false`},
		"a port":                {"ports: [\"80:80\"]", `"StartFirst":true`},
		"the host's network":    {"network_mode: host", `"StartFirst":false`},
		"asked, though named":   {"container_name: xx, deploy: {update_config: {order: start-first}}", "!deploy.update_config.order"},
		"asked":                 {"volumes: [\"vol:/v\"], deploy: {update_config: {order: start-first}}", `"StartFirst":true`},
		"rollback of rollback":  {"deploy: {rollback_config: {failure_action: rollback}}", "!deploy.rollback_config.failure_action"},
		"a schedule":            {`x-escale-schedule: "0 3 * * *"`, `"Schedule":"0 3 * * *"`},
		"jobs":                  {"deploy: {mode: replicated-job, replicas: 2}", `"Job":{"Concurrent":0,"Total":2}`},
	} {
		t.Run(name, func(t *testing.T) {
			checkKey(t, "services: {a: {image: i, "+c.yaml+"}}\nnetworks: {n: {ipam: {config: [{subnet: 10.1.0.0/16}]}}}\nvolumes: {vol: {}}\n", c.want)
		})
	}
}
