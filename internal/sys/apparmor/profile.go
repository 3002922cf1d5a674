package apparmor

import (
	"fmt"
	"strings"
)

// abi is the file that fixes what a policy's rules mean; older parsers have none.
const abi = "/etc/apparmor.d/abi/3.0"

// profile writes the profile: a container may do with its own files, network
// and capabilities what its specification lets it, and may reach, of the
// kernel's files, only what belongs to it. engine is the label of the engine,
// whose signals the container must take.
func profile(name, engine string, exists func(string) bool) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if exists(abi) {
		line("abi <%s>,", strings.TrimPrefix(abi, "/etc/apparmor.d/"))
	}
	line("profile %q flags=(attach_disconnected,mediate_deleted) {", name)
	for _, rule := range []string{"file", "network", "capability", "umount", "unix", "dbus"} {
		line("  %s,", rule)
	}
	line("  # Containers see and signal each other as far as their namespaces let them.")
	line("  ptrace (trace, tracedby, read, readby) peer=%q,", name)
	line("  signal (send, receive) peer=%q,", name)
	line("  # Whoever stops them: the engine, its runtime, an administrator.")
	for _, peer := range signallers(engine) {
		line("  signal (receive) peer=%q,", peer)
	}
	line("  deny mount,")
	line("  # Of /proc a container writes to processes and to the shared memory of its own IPC namespace.")
	for _, path := range []string{
		"/proc/*", "/proc/[^1-9s]*/**", "/proc/s[^ey]*/**", "/proc/sysvipc/**",
		"/proc/sys/[^k]**", "/proc/sys/kernel/[^s]**", "/proc/sys/kernel/s[^h]**", "/proc/sys/kernel/sh[^m]**",
	} {
		line("  deny %s w,", path)
	}
	line("  deny /proc/{sysrq-trigger,kcore} rwklx,")
	line("  # Of /sys it writes to cgroups, where they are given to it.")
	for _, path := range []string{"/sys/[^f]**", "/sys/f[^s]**", "/sys/fs/[^c]**", "/sys/fs/c[^g]**"} {
		line("  deny %s wkl,", path)
	}
	line("  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,")
	line("}")
	return b.String()
}

// signallers are the labels of those that may signal a container. runc and crun
// have profiles of their own on some machines.
func signallers(engine string) []string {
	peers := []string{"unconfined", "runc", "crun"}
	for _, p := range peers {
		if p == engine {
			return peers
		}
	}
	if engine != "" {
		peers = append(peers, engine)
	}
	return peers
}
