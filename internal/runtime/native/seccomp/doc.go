// Package seccomp turns the OCI's linux.seccomp (runtime specification, config-linux.md,
// section Seccomp) into a program for the kernel's filter of system calls
// (Documentation/userspace-api/seccomp_filter.rst), in Go alone.
//
// A program first looks at the architecture, which a process chooses anew with each
// call, then finds the number's leaf by binary search, and there compares arguments.
// What the profile leaves open is answered as runc with libseccomp does:
//
//   - An architecture that the profile does not name kills the thread. The native one
//     always counts as named.
//   - A call newer than all that the profile names fails with ENOSYS, unless the default
//     lets calls through: a C library falls back to an older call then, which it does
//     not with EPERM.
//   - Names that no kernel of this table has are skipped.
//   - Of several rules about one call, the first without conditions wins over all
//     others; rules that say the same as the default do not count.
//
// Of several conditional rules that match and disagree, the first in the profile wins.
// On x86, where socketcall(2) and ipc(2) carry other calls, a rule about one of these
// holds for both ways. A rule with conditions cannot be checked there, since the
// arguments lie in memory: one that is laxer than the default is left out, one that is
// stricter holds whatever the arguments are.
package seccomp
