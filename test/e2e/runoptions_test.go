package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// controller is where a container sees a controller's files, by version of cgroups.
func controller(v1 string) string {
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err != nil {
		return "/sys/fs/cgroup/"
	}
	return "/sys/fs/cgroup/" + v1 + "/"
}

// limit prints what the kernel has: the file of version 1 or else of version 2.
func limit(v1, file1, file2 string) string {
	dir := controller(v1)
	return " $IMG sh -c 'cat " + dir + file1 + " 2>/dev/null || cat " + dir + file2 + "'"
}

// TestRunLimits: each limit as the kernel has it, seen from inside.
func TestRunLimits(t *testing.T) {
	needs(t)
	if foreign != "" {
		t.Skip("another's engine: its words may be older")
	}
	table(t, map[string]string{"W": t.TempDir()}, []try{
		{args: "run --rm -m 64m --memory-swap 128m" + limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"), out: "^(134217728|67108864)$"},
		{args: "run --rm -m 64m" + limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"), out: "^(134217728|67108864)$"},
		{args: "run --rm -m 64m --memory-reservation 32m" + limit("memory", "memory.soft_limit_in_bytes", "memory.low"), out: "^33554432$"},
		{args: "run --rm --memory-swap 100m $IMG true", code: 125, err: "You should always set the Memory limit when using Memoryswap limit, see usage"},
		{args: "run --rm -m 64m --memory-swap 32m $IMG true", code: 125, err: "Minimum memoryswap limit should be larger than memory limit, see usage"},
		{args: "run --rm -m 4m $IMG true", code: 125, err: "Minimum memory limit allowed is 6MB"},
		{args: "run --rm -m 10m --memory-reservation 20m $IMG true", code: 125, err: "Minimum memory limit can not be less than memory reservation limit, see usage"},
		{args: "run --rm --kernel-memory 50m $IMG true"},
		{args: "run --rm --oom-kill-disable $IMG true", err: "WARNING: (OOM killer is disabled for the container, but no memory limit is set|Your kernel does not support OomKillDisable)"},
		{args: "run --rm --cpu-shares 512" + limit("cpu", "cpu.shares", "cpu.weight"), out: "^(512|20|59)$"},
		{args: "run --rm --cpu-period 50000 --cpu-quota 20000" + limit("cpu", "cpu.cfs_quota_us", "cpu.max"), out: "^20000"},
		{args: "run --rm --cpus 0.25" + limit("cpu", "cpu.cfs_quota_us", "cpu.max"), out: "^25000"},
		{args: "run --rm --cpus 999 $IMG true", code: 125, err: "range of CPUs is from 0.01 to [0-9]+.00, as there are only [0-9]+ CPUs available"},
		{args: "run --rm --cpus 1 --cpu-quota 5000 $IMG true", code: 125, err: "Conflicting options: Nano CPUs and CPU Quota cannot both be set"},
		{args: "run --rm --cpu-period 10 $IMG true", code: 125, err: "CPU cfs period can not be less than 1ms"},
		{args: "create --cpu-rt-runtime 2000 --cpu-rt-period 1000 $IMG true", code: 1, err: "cpu real-time runtime cannot be higher than cpu real-time period|kernel does not support CPU real-time scheduler"},
		{args: "run --rm --cpuset-cpus 0 --cpuset-mems 0" + limit("cpuset", "cpuset.mems", "cpuset.mems"), out: "^0$"},
		{args: "run --rm --cpuset-cpus 999 $IMG true", code: 125, err: "Requested CPUs are not available - requested 999, available: "},
		{args: "run --rm --cpuset-cpus x $IMG true", code: 125, err: "Invalid value x for cpuset cpus"},
		{args: "run --rm --pids-limit 20" + limit("pids", "pids.max", "pids.max"), out: "^20$"},
		{args: "run --rm --pids-limit -1" + limit("pids", "pids.max", "pids.max"), out: "^max$"},
		{args: "run --rm --ulimit nofile=77:99 --ulimit core=0 $IMG sh -c 'ulimit -Sn; ulimit -Hn; ulimit -c'", out: "^77\n99\n0$"},
		{args: "run --rm --ulimit foo=1 $IMG true", code: 125, err: "invalid ulimit type: foo"},
		{args: "run --rm --ulimit nofile=300:200 $IMG true", code: 125, err: "ulimit soft limit must be less than or equal to hard limit: 300 > 200"},
		{args: "run --rm --device-read-bps /dev/nosuch:1mb $IMG true", code: 127, err: "stat /dev/nosuch: no such file or directory"},
		{args: "run --rm --shm-size 8m $IMG sh -c 'df -k /dev/shm | tail -1'", out: " 8192 "},
		{args: "run --rm --oom-score-adj 2000 $IMG true", code: 125, err: `Invalid value 2000, range for oom score adj is \[-1000, 1000\]`},
		{args: "run --rm --cgroup-parent /$N-parent/x $IMG cat /proc/self/cgroup", out: "[:,](pids|):/$N-parent/x/[0-9a-f]{64}"},
		{args: "run --rm --cgroup-parent $N-parent $IMG cat /proc/self/cgroup", out: ":/$N-parent/[0-9a-f]{64}"},
		{args: "run --rm --cgroupns private $IMG cat /proc/self/cgroup", out: ":/$"},
	})
	for _, dir := range []string{"/sys/fs/cgroup/*/e2e-table-*-parent", "/sys/fs/cgroup/e2e-table-*-parent"} {
		found, _ := filepath.Glob(dir)
		for _, d := range found { // Docker leaves these too: they are the user's
			os.Remove(filepath.Join(d, "x"))
			if err := os.Remove(d); err != nil {
				t.Errorf("clean-up: %v", err)
			}
		}
	}
}

// TestThrottle: the bounds of a block device's use as the kernel has them, at once
// and all four together.
func TestThrottle(t *testing.T) {
	needs(t)
	if foreign != "" {
		t.Skip("another's engine: its words may be older")
	}
	v1, err := os.Stat("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device")
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if (err != nil || v1 == nil) && !slices.Contains(strings.Fields(string(controllers)), "io") {
		t.Skip("needs a kernel that bounds the use of block devices")
	}
	disks, _ := filepath.Glob("/sys/block/[vsn]*/dev")
	if len(disks) == 0 {
		t.Skip("needs a disk")
	}
	number, err := os.ReadFile(disks[0])
	if err != nil {
		t.Fatal(err)
	}
	disk := "/dev/" + filepath.Base(filepath.Dir(disks[0]))
	var tries []try
	all := "run --rm"
	for _, c := range []struct{ option, rate, v1, v2 string }{
		{"--device-read-bps", "1mb", "read_bps", "rbps=1048576"},
		{"--device-write-bps", "2mb", "write_bps", "wbps=2097152"},
		{"--device-read-iops", "100", "read_iops", "riops=100"},
		{"--device-write-iops", "200", "write_iops", "wiops=200"},
	} {
		option := " " + c.option + " " + disk + ":" + c.rate
		all += option
		_, value, _ := strings.Cut(c.v2, "=")
		number := strings.TrimSpace(string(number))
		tries = append(tries, try{
			args: "run --rm" + option + limit("blkio", "blkio.throttle."+c.v1+"_device", "io.max"),
			out:  "^" + number + " (" + value + "|.*\\b" + c.v2 + "\\b.*)$",
		})
	}
	tries = append(tries, try{args: all + limit("blkio", "blkio.throttle.write_iops_device", "io.max"), out: "(^| |=)200$"})
	table(t, map[string]string{"W": t.TempDir()}, tries)
}

// TestRunIsolation: namespaces, rights and names as a process in the container has them.
func TestRunIsolation(t *testing.T) {
	needs(t)
	if foreign != "" {
		t.Skip("another's engine: its words may be older")
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	pid := "/proc/" + strconv.Itoa(os.Getpid())
	w := t.TempDir()
	for file, text := range map[string]string{
		"env": "A=1\n# no\nB=two words\n", "labels": "l=m\n",
		"deny.json": `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`, "bad.json": "{",
	} {
		if err := os.WriteFile(filepath.Join(w, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status := func(field string) string { return " $IMG grep " + field + ": /proc/self/status" }
	table(t, map[string]string{"W": w}, []try{
		{args: "run --rm --sysctl net.core.somaxconn=999 --sysctl kernel.shmmax=12345 $IMG cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax", out: "^999\n12345$"},
		{args: "run --rm --sysctl net.core.somaxconn=999 --net host $IMG true", code: 125, err: `sysctl "net.core.somaxconn" not allowed in host network namespace`},
		{args: "run --rm --sysctl kernel.shmmax=12345 --ipc host $IMG true", code: 125, err: `sysctl "kernel.shmmax" is not allowed in the hosts ipc namespace`},
		{args: "run --rm --sysctl vm.swappiness=1 $IMG true", code: 125, err: "sysctl 'vm.swappiness=1' is not allowed"},
		{args: "run --rm --pid host $IMG ls -d " + pid, out: "^" + pid + "$"},
		{args: "run --rm $IMG ls -d " + pid, code: 1},
		{args: "run --rm --pid container:nosuch $IMG true", code: 125, err: "No such container: nosuch"},
		{args: "run --rm --pid foo $IMG true", code: 125, err: "--pid: invalid PID mode"},
		{args: "run -d --name $N --ipc shareable --cap-drop ALL --hostname h --domainname d.example --add-host db:10.1.2.3 --dns 10.9.9.9 --dns-search s.example --dns-option ndots:3 $IMG sh -c 'echo mark > /dev/shm/m; sleep 300'"},
		{args: "run --rm --ipc container:$N $IMG sh -c 'for i in 1 2 3 4 5 6 7 8 9; do cat /dev/shm/m && break; usleep 100000; done'", out: "^mark$"},
		{args: "run --rm --pid container:$N $IMG ps", out: "sleep 300"},
		{args: "exec $N sh -c 'hostname; cat /etc/hostname /proc/sys/kernel/domainname'", out: "^h\nh\nd.example$"},
		{args: "exec $N cat /etc/hosts /etc/resolv.conf", out: "^10.1.2.3\tdb$(.|\n)*h.d.example h\n(.|\n)*^nameserver 10.9.9.9\nsearch s.example\noptions ndots:3$"},
		{args: "exec $N grep Cap /proc/1/status", out: "^CapEff:\t0000000000000000\nCapBnd:\t0000000000000000$"},
		{args: "rm -f $N"},
		{args: "run --rm --ipc none $IMG ls /dev/shm", code: 1, err: "No such file"},
		{args: "run --rm --ipc container:nosuch $IMG true", code: 125, err: "No such container: nosuch"},
		{args: "run --rm --ipc foo $IMG true", code: 125, err: "invalid IPC mode: foo"},
		{args: "run --rm --uts host $IMG hostname", out: "^" + name + "$"},
		{args: "run --rm --uts host --hostname foo $IMG true", code: 125, err: "conflicting options: hostname and the UTS mode"},
		{args: "run --rm --userns host $IMG cat /proc/self/uid_map", out: "^ +0 +0 +4294967295$"},
		{args: "run --rm --userns foo $IMG true", code: 125, err: "--userns: invalid USER mode"},
		{args: "run --rm --cgroupns foo $IMG true", code: 125, err: "--cgroupns: invalid CGROUP mode"},
		{args: "run --rm --cap-add CAP_NET_ADMIN --cap-drop chown" + status("CapEff"), out: "00000000a80435fa"},
		{args: "run --rm --cap-add foo $IMG true", code: 125, err: `invalid CapAdd: unknown capability: "CAP_FOO"`},
		{args: "run --rm --cap-drop foo $IMG true", code: 125, err: `invalid CapDrop: unknown capability: "CAP_FOO"`},
		{args: "run --rm --security-opt seccomp=$W/deny.json $IMG mkdir /tmp/x", code: 1, err: "ermitted"},
		{args: "run --rm --security-opt seccomp=builtin" + status("Seccomp"), out: "2$"},
		{args: "run --rm --security-opt seccomp=$W/bad.json $IMG true", code: 125, err: "compacting json for seccomp profile"},
		{args: "run --rm --security-opt seccomp=$W/nosuch $IMG true", code: 125, err: "opening seccomp profile .* failed"},
		{args: "run --rm --security-opt no-new-privileges=true" + status("NoNewPrivs"), out: "1$"},
		{args: "run --rm --security-opt label=type:foo_t --security-opt label=level:s0 $IMG true"},
		{args: "run --rm --security-opt writable-cgroups=true $IMG sh -c 'grep -c \" /sys/fs/cgroup.* rw\" /proc/self/mountinfo'", out: "^[1-9]"},
		{args: "run --rm --security-opt systempaths=unconfined $IMG sh -c 'grep -c \" /proc/\" /proc/mounts'", code: 1, out: "^0$"},
		{args: "run --rm --security-opt foo=bar $IMG true", code: 125, err: `invalid --security-opt 2: "foo=bar"`},
		{args: "run --rm --group-add nosuch $IMG true", code: 125, err: "(?i)unable to find group nosuch: no matching entries in group file"},
		{args: "run --rm --device /dev/null:/dev/x:r $IMG sh -c 'ls -l /dev/x'", out: "1, +3"},
		{args: "run --rm --device /dev/nosuch $IMG true", code: 127, err: `error gathering device information while adding custom device "/dev/nosuch": no such file or directory`},
		{args: "run --rm --device /etc/passwd $IMG true", code: 125, err: `adding custom device "/etc/passwd": not a device node`},
		{args: "run --rm --device-cgroup-rule 'c 10:200 rwm' $IMG sh -c 'mknod /tmp/k c 10 200 && head -c 0 /tmp/k'"},
		{args: "run --rm --tmpfs /t:rw,size=1m,mode=700,uid=33,exec $IMG sh -c 'grep \" /t \" /proc/mounts; stat -c %a:%u /t'", out: "size=1024k(.|\n)*700:33$"},
		{args: "run --rm --tmpfs /t:foo=1 $IMG true", code: 125, err: `invalid tmpfs option`},
		{args: "run --rm --tmpfs t $IMG true", code: 125, err: "invalid mount path: 't' mount path must be absolute"},
		{args: "run --rm --mac-address 02:42:ac:11:00:99 $IMG cat /sys/class/net/eth0/address", out: "^02:42:ac:11:00:99$"},
		{args: "run --rm --mac-address zz $IMG true", code: 125, err: "zz is not a valid mac address"},
		{args: "run --rm --ip 10.0.0.7 $IMG true", code: 125, err: "invalid config for network bridge: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only"},
		{args: "run --rm --network-alias a $IMG true", code: 125, err: "network-scoped aliases are only supported for user-defined networks"},
		{args: "run --rm --net host -p 80:80 $IMG true", err: "WARNING: Published ports are discarded when using host network mode"},
		{args: "run --rm --platform linux/s390x --pull never $IMG true", code: 125, err: "image with reference $IMG was found but"},
		{args: "run --rm --isolation default $IMG true"},
		{args: "run --rm --isolation hyperv $IMG true", code: 125, err: "invalid isolation 'hyperv' on linux"},
		{args: "run --rm --runtime nosuch $IMG true", code: 125, err: "unknown or invalid runtime name: nosuch"},
		{args: "run --rm --stop-signal foo $IMG true", code: 125, err: "invalid signal: foo"},
		{args: "run --rm --health-interval 1us $IMG true", code: 125, err: "Interval in Healthcheck cannot be less than 1ms"},
		{args: "run --rm --pull never nosuch true", code: 125, err: "No such image: nosuch:latest"},
		{args: "run --rm --pull foo $IMG true", code: 125, err: `invalid pull option: 'foo': must be one of "always", "missing" or "never"`},
		{args: "run --rm --env-file $W/env -e C $IMG sh -c 'echo $A-$B'", out: "^1-two words$"},
		{args: "run --rm --annotation =x $IMG true", code: 125, err: "invalid Annotations: the empty string is not permitted as an annotation key"},
		{args: "run --rm --storage-opt size=1g $IMG true", code: 125, err: "--storage-opt is supported only for overlay over xfs"},
		{args: "run --rm --link nosuch $IMG true", code: 125, err: "could not get container for nosuch: No such container: nosuch"},
	})
}
