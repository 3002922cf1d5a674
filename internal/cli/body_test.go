package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// createLines are command lines of `create`; what the stock client sends for
// each is what escale must send. $D is a folder with the files they name.
var createLines = []string{
	"debian",
	"debian echo -d --name x",
	"-i debian cat",
	"-it debian bash",
	"-t -a stdout -a STDERR debian",
	"-a stdin -i debian",
	"-a stdout debian",
	"--name n --hostname h --domainname d debian",
	"-e A=1 -e A=2 -e B -e PATH_X= debian",
	"-e A=1 --env-file $D/env debian",
	"-l a=b -l c --label d= --label-file $D/labels debian",
	"--entrypoint /bin/sh debian -c true",
	"--entrypoint= debian true",
	"-w /x -u 33:33 debian",
	"--group-add 5 --group-add audio debian",
	"-p 80 debian",
	"-p 8080:80 debian",
	"-p 8080-8082:80-82/udp debian",
	"-p 8000-8010:80 debian",
	"-p 127.0.0.1:8080:80/tcp -p 127.0.0.1::81 debian",
	"-p [::1]:8080:80 -p 53:53/udp -p 53:53 -p 99:99/sctp debian",
	"-p target=80,published=8080 debian",
	"-p target=80,published=8080,protocol=udp debian",
	"-P --expose 80 --expose 90-92/udp debian",
	"-v /host:/c debian",
	"-v /host:/c:ro,z -v vol:/v -v /anon debian",
	"-v ./rel:/c -v ../up:/d:ro debian",
	"-v vol:/v:nocopy -v d:/x debian",
	"--mount type=bind,src=/h,dst=/c,readonly debian",
	"--mount type=bind,src=/h,dst=/c,bind-propagation=rslave,bind-nonrecursive debian",
	"--mount type=bind,src=/h,dst=/c,ro,bind-recursive=writable debian",
	"--mount type=volume,src=v,dst=/v,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-label=a=b,volume-nocopy debian",
	"--mount type=volume,dst=/v,volume-subpath=s debian",
	"--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770 debian",
	"--mount src=v,target=/v,readonly=false,consistency=cached debian",
	"--mount type=image,src=debian,dst=/i,image-subpath=etc debian",
	"--tmpfs /t --tmpfs /u:size=1m,mode=700 debian",
	"--volumes-from a --volumes-from b:ro debian",
	"--volume-driver local --storage-opt size=1G debian",
	"-m 64m --memory-swap 128m --memory-reservation 32m --memory-swappiness 10 debian",
	"-m 1.5g --memory-swap -1 --kernel-memory 50m debian",
	"--oom-kill-disable --oom-score-adj 500 --pids-limit 20 debian",
	"--cpus 1.5 --cpu-shares 512 --cpuset-cpus 0-1 --cpuset-mems 0 debian",
	"--cpu-period 100000 --cpu-quota 50000 --cpu-rt-period 1000 --cpu-rt-runtime 500 debian",
	"-c 10 --cpus=.25 debian",
	"--blkio-weight 300 --blkio-weight-device /dev/sda:200 debian",
	"--device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2k --device-read-iops /dev/sda:100 --device-write-iops /dev/sdb:200 debian",
	"--device /dev/fuse --device /dev/null:/dev/x --device /dev/zero:/dev/y:r --device /dev/full:rm debian",
	"--device vendor.com/class=name debian",
	"--device-cgroup-rule 'c 42:* rmw' debian",
	"--gpus all debian",
	"--gpus 2 --gpus 'driver=nvidia,count=1,\"capabilities=utility,compute\",\"options=a=b,c=d\"' debian",
	"--gpus '\"device=0,1\"' debian",
	"--ulimit nofile=77 --ulimit nproc=3:5 --ulimit core=-1 debian",
	"--sysctl net.core.somaxconn=1000 --sysctl kernel.shmmax=1 debian",
	"--shm-size 64m --ipc host --pid host --uts host --userns host --cgroupns private debian",
	"--ipc container:x --pid container:y debian",
	"--cap-add NET_ADMIN --cap-add cap_sys_time --cap-drop all debian",
	"--privileged --read-only --security-opt no-new-privileges --security-opt label=disable debian",
	"--security-opt seccomp=unconfined --security-opt apparmor:unconfined debian",
	"--security-opt seccomp=$D/seccomp.json --security-opt systempaths=unconfined debian",
	"--network host debian",
	"--network none debian",
	"--network container:x debian",
	"--network mynet --network-alias a --network-alias b --ip 10.0.0.5 --ip6 fd00::5 debian",
	"--net mynet --link db:database --link web debian",
	"--link db debian",
	"--network name=mynet,alias=x,alias=y,ip=10.1.2.3,mac-address=02:42:ac:11:00:09,driver-opt=k=v,gw-priority=3 --network name=other,ip6=fd01::2,link-local-ip=169.254.1.1 debian",
	"--network mynet --mac-address 02:42:ac:11:00:08 --link-local-ip 169.254.3.3 debian",
	"--dns 8.8.8.8 --dns 2001:4860:4860::8888 --dns-search example.com --dns-search . --dns-option ndots:2 debian",
	"--add-host a:1.2.3.4 --add-host b=fd00::1 --add-host c=[::1] --add-host d:host-gateway debian",
	"--log-driver json-file --log-opt max-size=1m --log-opt max-file=3 debian",
	"--log-driver none debian",
	"--restart always debian",
	"--restart on-failure:5 debian",
	"--restart unless-stopped debian",
	"--restart= debian",
	"--rm debian",
	"--init debian",
	"--init=false debian",
	"--runtime crun --isolation default --cgroup-parent /x debian",
	"--stop-signal INT --stop-timeout 3 debian",
	"--stop-timeout 0 debian",
	"--health-cmd 'curl -f x || exit 1' --health-interval 5s --health-timeout 2s --health-retries 3 --health-start-period 1m --health-start-interval 500ms debian",
	"--health-interval 5s debian",
	"--no-healthcheck debian",
	"--annotation a=b debian",
	"--platform linux/arm64/v8 debian",
	"--platform linux/amd64 --pull never -q debian",
	"--cidfile $D/cid debian",
	"--platform linux/amd64 debian",
	"--platform linux/arm/v7 debian",
	"--platform linux/armhf debian",
	"--platform x86_64 debian",
	"--platform windows debian",
	"docker.io/library/debian:12",
	"debian@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
}

// badLines must be refused, before anything is sent, with the stock client's
// code and words.
var badLines = []string{
	"",
	"--bogus debian",
	"-Z debian",
	"-p abc debian",
	"-p 80:abc debian",
	"-p 1-3:1-2 debian",
	"-p 80/foo debian",
	"-p 99999:80 debian",
	"-p 1.2.3:80:80 debian",
	"-p target debian=",
	"--expose 80:80 debian",
	"--expose x debian",
	"-v :/x debian",
	"-v aa:bb:cc:dd debian",
	"-v '' debian",
	"--mount type=bind debian",
	"--mount type=bind,dst=/x,volume-nocopy debian",
	"--mount foo=bar,dst=/x debian",
	"--mount dst debian",
	"--mount dst=/x,readonly=maybe debian",
	"--mount type=bind,src=/h,dst=/c,bind-recursive=readonly debian",
	"-e =x debian",
	"--env-file /nonexistent debian",
	"--env-file $D/badenv debian",
	"-l =x debian",
	"-l 'a b=c' debian",
	"-a foo debian",
	"-m abc debian",
	"--memory-swappiness 200 debian",
	"--cpus x debian",
	"--cpus 0.0000000001 debian",
	"--ulimit foo=1 debian",
	"--ulimit nofile=5:3 debian",
	"--sysctl kernel.foo=1 debian",
	"--device foo debian",
	"--device /dev/x:/dev/y:z debian",
	"--device-cgroup-rule x debian",
	"--blkio-weight-device /dev/sda:5 debian",
	"--device-read-bps sda:1m debian",
	"--device-read-iops /dev/sda:1m debian",
	"--gpus foo debian",
	"--gpus foo=bar debian",
	"--pid foo debian",
	"--uts foo debian",
	"--userns foo debian",
	"--cgroupns foo debian",
	"--security-opt foo debian",
	"--security-opt seccomp=/nonexistent debian",
	"--cpu-count 2 --cpu-percent 50 --io-maxbandwidth 1m --io-maxiops 5 debian",
	"--platform foo debian",
	"--platform linux/amd64/ debian",
	"--network name=a,foo=b debian",
	"--network a --network a debian",
	"--network host --network a debian",
	"--network-alias a debian",
	"--mac-address foo debian",
	"--network name=a,ip=1.2.3.4 --ip 1.2.3.5 debian",
	"--dns foo debian",
	"--dns-search -bad- debian",
	"--add-host foo debian",
	"--add-host a:b debian",
	"--link a:b:c debian",
	"--log-driver none --log-opt a=b debian",
	"--storage-opt x debian",
	"--restart on-failure:x debian",
	"--restart :3 debian",
	"--rm --restart always debian",
	"--health-retries -1 debian",
	"--no-healthcheck --health-cmd x debian",
	"--pull sometimes debian",
	"--platform a/b/c/d debian",
	"--cidfile $D/env debian",
	"UPPER",
	"--name",
}

// recorder is an engine that takes down what is created.
type recorder struct {
	mu   sync.Mutex
	host string
	last []byte
	url  string
}

func newRecorder(t *testing.T) *recorder {
	dir, err := os.MkdirTemp("", "rec")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &recorder{host: "unix://" + dir + "/s"}
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return r
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Api-Version", "1.50")
	w.Header().Set("Ostype", "linux")
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(q.URL.Path, "/containers/create") {
		b, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		r.last, r.url = b, q.URL.RequestURI()
		r.mu.Unlock()
		w.WriteHeader(201)
		fmt.Fprint(w, `{"Id":"0123456789abcdef","Warnings":[]}`)
	}
}

func (r *recorder) run(t *testing.T, dir, client, line string) (body any, url string, code int, stderr string) {
	t.Helper()
	r.mu.Lock()
	r.last, r.url = nil, ""
	r.mu.Unlock()
	_ = os.Remove(filepath.Join(dir, "cid"))
	// The shell splits the line, as at a prompt.
	cmd := exec.Command("sh", "-c", client+` -H "$HOST_UNDER_TEST" create `+line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "D="+dir, "HOST_UNDER_TEST="+r.host, "HOME="+dir, "DOCKER_CONFIG="+dir,
		"DOCKER_HOST=", "ESCALE_HOST=", "B=from-env", "DOCKER_CLI_HINTS=false")
	var errb bytes.Buffer
	cmd.Stderr = &errb
	err := cmd.Run()
	code = cmd.ProcessState.ExitCode()
	if code < 0 {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil {
		if err := json.Unmarshal(r.last, &body); err != nil {
			t.Fatalf("%s: body %s: %v", client, r.last, err)
		}
	}
	return body, r.url, code, errb.String()
}

func bodyDir(t *testing.T) string {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"env":          "# comment\n\nC=3\n  D=x y\nB\nNOT_SET_ANYWHERE\nQ=\"quoted\"\n",
		"badenv":       "A B=1\n",
		"labels":       "x=1\n# no\ny=\n",
		"seccomp.json": `{ "defaultAction": "SCMP_ACT_ALLOW" }`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func needDocker(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("needs the stock docker client on PATH: what escale sends is NOT compared with what it sends")
	}
}

func TestCreateBodiesAsDocker(t *testing.T) {
	needDocker(t)
	if len(createLines) < 60 {
		t.Fatalf("only %d command lines", len(createLines))
	}
	rec, dir := newRecorder(t), bodyDir(t)
	for _, line := range createLines {
		want, wantURL, wantCode, wantErr := rec.run(t, dir, "docker", line)
		got, gotURL, gotCode, gotErr := rec.run(t, dir, "escale", line)
		if want == nil {
			t.Errorf("create %s: docker itself sends nothing: %s", line, wantErr)
			continue
		}
		if gotCode != wantCode || gotURL != wantURL {
			t.Errorf("create %s: code %d (docker %d), url %s (docker %s)\n%s", line, gotCode, wantCode, gotURL, wantURL, gotErr)
		}
		for _, d := range differences("", normal(want), normal(got)) {
			t.Errorf("create %s: %s", line, d)
		}
	}
	t.Logf("%d command lines compared", len(createLines))
}

func TestCreateRefusesAsDocker(t *testing.T) {
	needDocker(t)
	rec, dir := newRecorder(t), bodyDir(t)
	for _, line := range badLines {
		_, wantURL, wantCode, wantErr := rec.run(t, dir, "docker", line)
		_, gotURL, gotCode, gotErr := rec.run(t, dir, "escale", line)
		wantErr = strings.ReplaceAll(wantErr, "docker", "escale")
		if wantURL != "" {
			t.Errorf("create %s: docker accepts it", line)
		}
		if gotCode != wantCode || gotURL != wantURL || strings.TrimSpace(gotErr) != strings.TrimSpace(wantErr) {
			t.Errorf("create %s:\n got %d %s%q\nwant %d %s%q", line, gotCode, gotURL, gotErr, wantCode, wantURL, wantErr)
		}
	}
	t.Logf("%d command lines compared", len(badLines))
}

// normal makes two bodies comparable. The two clients are of different ages:
// null, [] and {} mean the same to every engine, but for the paths to mask,
// where [] means none and null the default; fields that only one of the two
// knows count when they hold something.
func normal(body any) any {
	m := body.(map[string]any)
	host := m["HostConfig"].(map[string]any)
	for _, k := range []string{"Env"} {
		sortList(m, k) // docker's order is that of a Go map
	}
	for _, k := range []string{"Binds"} {
		sortList(host, k)
	}
	if v, ok := host["KernelMemory"]; ok && v != nil {
		delete(host, "KernelMemory") // the kernel has no such limit any more, nor has the API
	}
	for _, k := range []string{"MaskedPaths", "ReadonlyPaths"} {
		if v, ok := host[k].([]any); ok && len(v) == 0 {
			host[k] = "none"
		}
	}
	return prune(m)
}

func sortList(m map[string]any, k string) {
	l, _ := m[k].([]any)
	for i := range l {
		for j := i + 1; j < len(l); j++ {
			if l[j].(string) < l[i].(string) {
				l[i], l[j] = l[j], l[i]
			}
		}
	}
}

func prune(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range x {
			if p := prune(e); p != nil {
				out[k] = p
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		if len(x) == 0 {
			return nil
		}
		for i, e := range x {
			x[i] = prune(e)
		}
		return x
	}
	return v
}

func differences(at string, want, got any) []string {
	wm, ok1 := want.(map[string]any)
	gm, ok2 := got.(map[string]any)
	if !ok1 || !ok2 {
		if reflect.DeepEqual(want, got) {
			return nil
		}
		return []string{fmt.Sprintf("%s: %s, docker sends %s", at, text(got), text(want))}
	}
	var out []string
	keys := map[string]bool{}
	for k := range wm {
		keys[k] = true
	}
	for k := range gm {
		keys[k] = true
	}
	for k := range keys {
		w, inW := wm[k]
		g, inG := gm[k]
		if inW != inG && (w == "" || g == "") {
			continue // an empty string and no string
		}
		out = append(out, differences(at+"."+k, w, g)...)
	}
	return out
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
