package oci

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestRuntimeIsNotOverwritten: a container holds on to the program of each process that
// comes into it and writes to it when it can; the runtime that joins the container must
// stay as it was.
//
// CVE-2019-5736 (runc).
func TestRuntimeIsNotOverwritten(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		// A copy: what a successful attack ruins must not be what others use.
		program, err := os.ReadFile(r.path)
		if err != nil {
			t.Fatal(err)
		}
		r.path = filepath.Join(r.bundle, "runtime")
		r.file("runtime", string(program), 0o755)
		victim := filepath.Join(r.rootfs, "bin/busybox-victim")
		busybox, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Fatal(err)
		}
		r.file("rootfs/bin/busybox-victim", string(busybox), 0o755)
		r.me("attacker")
		r.may("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
		r.spec.Process.Env = append(r.spec.Process.Env, part+"=overwrite")
		r.start("/attacker")
		said := r.stdout
		attacker := func() string { b, _ := os.ReadFile(said); return string(b) }
		soon(t, "the attacker watches", func() bool { return strings.Contains(attacker(), "watching") })
		// The moment in which it can be caught may be short.
		for range 25 {
			r.execute(nil, "/bin/true")
			// The process becomes the runtime's own program, inside.
			r.execute(nil, "/proc/self/exe", "--version")
			r.safe(outcome{output: attacker()})
		}
		if now, err := os.ReadFile(r.path); err != nil || !bytes.Equal(now, program) {
			t.Errorf("escape: the runtime's program was overwritten: %v\n%s", err, attacker())
		}
		// Control: this attacker does overwrite what can be.
		soon(t, "the attacker overwrites a program of the image", func() bool {
			// On a busy machine it may miss it the first time.
			r.execute(nil, "/bin/busybox-victim", "sleep", "0.2")
			now, err := os.ReadFile(victim)
			return err == nil && !bytes.Equal(now, busybox)
		})
		t.Logf("%s", attacker())
	})
}

// TestNothingOfTheHostIsOpen: a container looks through what processes that come into it
// have open, as long as they are still the runtime.
//
// CVE-2016-9962, CVE-2024-21626 (runc).
func TestNothingOfTheHostIsOpen(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.me("attacker")
		r.may("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
		r.spec.Process.Env = append(r.spec.Process.Env, part+"=climb "+filepath.Join(r.canary, "secret"))
		r.start("/attacker")
		said := r.stdout
		attacker := func() string { b, _ := os.ReadFile(said); return string(b) }
		soon(t, "the attacker watches", func() bool { return strings.Contains(attacker(), "watching") })
		for range 12 {
			r.execute(nil, "/bin/true")
		}
		r.safe(outcome{output: attacker()})
		t.Logf("%s", attacker())
		r.call("delete", "--force", r.id)

		// Control: a directory that a process of the container has open, it finds.
		dir, err := os.Open(r.canary)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		r.stdin = dir
		r.start("/bin/sh", "-c", "sleep 60")
		r.stdin = nil
		r.execute(func(p *specs.Process) { p.Env = append(p.Env, part+"=climb "+filepath.Join(r.canary, "secret")) }, "/bin/sh", "-c", "/attacker & sleep 0.5; kill $!")
		if !strings.Contains(r.said(), secret) {
			t.Errorf("an open directory of the host was not found: %s", r.said())
		}
	})
}

// TestNothingOfTheHostIsSeenAtBirth: a container looks through the processes of another one
// that is made in its pid namespace, from the first moment on: through what they have
// open, their roots, working directories and namespaces.
//
// CVE-2016-9962, CVE-2024-21626 (runc), with "--pid container:".
func TestNothingOfTheHostIsSeenAtBirth(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if r.name == reference {
			t.Skip("runc builds a container in the pid namespace that it joins, with the host's root: who may trace reads it")
		}
		r.me("attacker")
		r.may("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
		var host []string
		for _, kind := range []string{"mnt", "net", "ipc", "uts"} {
			link, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			host = append(host, link)
		}
		r.spec.Process.Env = append(r.spec.Process.Env, part+"=climb "+filepath.Join(r.canary, "secret"))
		r.start("/attacker")
		said := r.stdout
		attacker := func() string { b, _ := os.ReadFile(said); return string(b) }
		soon(t, "the attacker watches", func() bool { return strings.Contains(attacker(), "watching") })
		first := r.id
		pids := fmt.Sprintf("/proc/%d/ns/pid", r.pid())
		r.mkdir("source")
		for n := range 12 {
			r.id = fmt.Sprintf("%s-%d", first, n)
			r.spec = defaultSpec(r.id)
			for i := range r.spec.Linux.Namespaces {
				if r.spec.Linux.Namespaces[i].Type == specs.PIDNamespace {
					r.spec.Linux.Namespaces[i].Path = pids
				}
			}
			r.spec.Mounts = append(r.spec.Mounts, specs.Mount{Destination: "/source", Type: "bind", Source: filepath.Join(r.bundle, "source"), Options: []string{"rbind"}})
			r.must(r.run("readlink /proc/self/ns/pid"))
		}
		r.id = first
		seen := attacker()
		r.safe(outcome{output: seen})
		for _, link := range host {
			if strings.Contains(seen, link) {
				t.Errorf("escape: a namespace of the host was seen: %s", link)
			}
		}
		if !strings.Contains(seen, "saw mnt:") {
			t.Errorf("control: the attacker saw nobody come: %s", seen)
		}
		t.Logf("%s", seen)
	})
}

// TestFilesOfTheCaller: what the caller of the runtime has open does not come into the
// container, and is no way to a working directory outside of it, however it is named.
//
// CVE-2024-21626, CVE-2016-9962 (runc).
func TestFilesOfTheCaller(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		dir, err := os.Open(r.canary)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		r.inherited = []*os.File{dir, dir, dir}
		script := fmt.Sprintf("ls -l /proc/self/fd/; cat /proc/self/fd/*/secret secret ../secret %s%s/secret 2>/dev/null; pwd; true", strings.Repeat("../", 20), r.canary)
		open := r.must(r.run(script))
		r.safe(outcome{output: open})
		for line := range strings.Lines(open) {
			if strings.Contains(line, filepath.Dir(r.canary)) && !strings.Contains(line, "/out-") {
				t.Errorf("escape: a file of the caller is open in the container: %s", line)
			}
		}
		var cwds []string
		for fd := 3; fd <= 20; fd++ {
			cwds = append(cwds, fmt.Sprintf("/proc/self/fd/%d", fd))
		}
		r.symlink("/proc/self/fd/7", "rootfs/seven")
		r.symlink("/proc/self/fd/8/..", "rootfs/eight")
		cwds = append(cwds, "/proc/thread-self/fd/7", "/proc/self/fd/7/../..", "/proc/1/fd/8", "/seven", "/eight", "/proc/self/cwd", "/proc/1/cwd", "/proc/self/root/proc/self/fd/6")
		started := 0
		for _, cwd := range cwds {
			r.spec.Process.Cwd = cwd
			o := r.run(script)
			r.safe(o)
			if o.err == nil {
				started++
			}
		}
		r.spec.Process.Cwd = "/"
		r.start("/bin/sleep", "60")
		for _, cwd := range cwds {
			o := r.execute(func(p *specs.Process) { p.Cwd = cwd }, "/bin/sh", "-c", script)
			r.safe(o)
			if o.err == nil {
				started++
			}
		}
		t.Logf("%d of %d were started", started, 2*len(cwds))
	})
}

// TestNoInheritableCapabilities: neither a container's process nor one that joins it has
// inheritable or ambient capabilities that nobody asked for.
//
// CVE-2022-29162 (runc), CVE-2022-27650 (crun), CVE-2025-27612 (youki).
func TestNoInheritableCapabilities(t *testing.T) {
	const show = "grep -E 'Cap(Inh|Amb)' /proc/self/status"
	none := func(t *testing.T, how string, o outcome) {
		t.Helper()
		if o.err != nil || strings.Count(o.output, "0000000000000000") != 2 {
			t.Errorf("%s: %v %s", how, o.err, o.output)
		}
	}
	each(t, func(t *testing.T, r *rig) {
		none(t, "run", r.run(show))
		r.spec.Process.User = specs.User{UID: 1000, GID: 1000}
		none(t, "run as somebody", r.run(show))
		r.start("/bin/sleep", "60")
		none(t, "exec as somebody", r.execute(nil, "/bin/sh", "-c", show))
		none(t, "exec as root", r.execute(func(p *specs.Process) { p.User = specs.User{} }, "/bin/sh", "-c", show))
		// What an option of the command line adds is not inheritable either.
		o := r.call("exec", "--cap", "CAP_NET_ADMIN", "--user", "0", r.id, "/bin/sh", "-c", "grep CapInh /proc/self/status")
		if o.err != nil || !strings.Contains(o.output, "0000000000000000") {
			t.Errorf("exec --cap: %v %s", o.err, o.output)
		}
		r.call("delete", "--force", r.id)
		// Control: those that are asked for are seen.
		r.fresh()
		r.spec.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"}
		if out := r.must(r.run(show)); !strings.Contains(out, "CapInh:\t0000000000000001") {
			t.Errorf("asked for: %s", out)
		}
	})
}

// TestUserOfExec: a user given as a number is that user.
//
// CVE-2026-30892 (crun).
func TestUserOfExec(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.start("/bin/sleep", "60")
		for user, want := range map[string]string{"1": "uid=1 gid=0", "1:2": "uid=1 gid=2", "1000:1000": "uid=1000 gid=1000", "0": "uid=0 gid=0"} {
			if out := r.must(r.call("exec", "--user", user, r.id, "/bin/sh", "-c", "echo uid=$(id -u) gid=$(id -g)")); !strings.HasPrefix(out, want) {
				t.Errorf("--user %s: %s, want %s", user, out, want)
			}
		}
	})
}

// TestCoveredFromInside: a container that may mount covers its own /proc with files of its
// making before somebody joins it; who joins is confined all the same.
//
// CVE-2025-52881, CVE-2019-19921 (runc) from inside.
func TestCoveredFromInside(t *testing.T) {
	const status = "umount /proc 2>/dev/null; grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status"
	each(t, func(t *testing.T, r *rig) {
		r.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"swapon"}, Action: specs.ActErrno}}}
		r.may("CAP_SYS_ADMIN")
		want := r.must(r.run(status))
		if !strings.Contains(want, "NoNewPrivs:\t1") || !strings.Contains(want, "Seccomp:\t2") {
			t.Fatalf("control: %s", want)
		}
		r.fresh()
		r.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"swapon"}, Action: specs.ActErrno}}}
		r.may("CAP_SYS_ADMIN")
		for name, cover := range map[string]string{
			"empty": "",
			"files": "mkdir -p /proc/self/attr/apparmor /proc/self/fd /proc/self/ns /proc/sys/kernel; touch /proc/self/attr/exec /proc/self/oom_score_adj /proc/sys/kernel/cap_last_cap; echo 0 > /proc/sys/kernel/cap_last_cap; ln -s self /proc/thread-self; ",
			"links": "mkdir -p /proc/self; for f in attr fd ns exe oom_score_adj; do ln -s /etc /proc/self/$f; done; ln -s self /proc/thread-self; ",
		} {
			r.start("/bin/sh", "-c", "mount -t tmpfs none /proc && "+cover+"echo covered; sleep 60")
			said := r.stdout
			soon(t, name, func() bool { b, _ := os.ReadFile(said); return bytes.Contains(b, []byte("covered")) })
			o := r.execute(nil, "/bin/sh", "-c", status)
			r.safe(o)
			if o.err == nil && o.output != want {
				t.Errorf("%s: who joins is confined otherwise:\n%swant\n%s", name, o.output, want)
			}
			t.Logf("%s: %s", name, failure(o))
			r.call("delete", "--force", r.id)
		}
	})
}

// TestLongPaths: paths of namespaces longer than what lengths between the runtime's stages
// hold do not put the container into namespaces of the host.
//
// CVE-2021-43784 (runc).
func TestLongPaths(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		host, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{5000, 1<<16 + 8, 1<<16 + 4096} {
			for i := range r.spec.Linux.Namespaces {
				if r.spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
					r.spec.Linux.Namespaces[i].Path = "/proc/self/ns/" + strings.Repeat("./", n/2) + "net"
				}
			}
			o := r.run("readlink /proc/self/ns/net /proc/self/ns/mnt")
			r.safe(o)
			if o.err == nil {
				t.Errorf("%d bytes: started, in %s (the host's is %s)", n, o.output, host)
			}
		}
		r.fresh()
		if out := r.must(r.run("readlink /proc/self/ns/net")); strings.Contains(out, host) {
			t.Errorf("control: %s", out)
		}
	})
}

// TestCgroupsAreReadOnly: a container makes no cgroups where its mount of them says ro, with
// a cgroup namespace or without, nor as root of a user namespace.
//
// CVE-2023-25809 (runc).
func TestCgroupsAreReadOnly(t *testing.T) {
	// By the kernel's magic numbers of both versions: on version 1 there is a tmpfs around.
	const attempt = `for d in /sys/fs/cgroup /sys/fs/cgroup/*; do case $(stat -f -c %t $d) in 27e0eb|63677270) ;; *) continue ;; esac; echo looked; mkdir $d/made 2>/dev/null && rmdir $d/made && echo "made in $d"; done; true`
	user := func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
	}
	shared := func(s *specs.Spec) {
		for i, ns := range s.Linux.Namespaces {
			if ns.Type == specs.CgroupNamespace {
				s.Linux.Namespaces = append(s.Linux.Namespaces[:i], s.Linux.Namespaces[i+1:]...)
				return
			}
		}
	}
	each(t, func(t *testing.T, r *rig) {
		for name, changes := range map[string][]func(*specs.Spec){"own": nil, "shared": {shared}, "user": {user}, "user, shared": {shared, user}} {
			r.fresh()
			for _, change := range changes {
				change(r.spec)
			}
			if out := r.must(r.run(attempt)); !strings.Contains(out, "looked") || strings.Contains(out, "made in") {
				t.Errorf("escape, %s: %s", name, out)
			}
		}
		// Control: where it does not say ro, they can be made.
		r.fresh()
		for i := range r.spec.Mounts {
			if m := &r.spec.Mounts[i]; m.Type == "cgroup" {
				m.Options = []string{"nosuid", "noexec", "nodev"}
			}
		}
		if out := r.must(r.run(attempt)); !strings.Contains(out, "made in") {
			t.Errorf("control: %s", out)
		}
	})
}
