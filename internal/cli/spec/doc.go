// Package spec turns the words of `escale run` and `escale create` into the
// three parts of a container-create request: Config, HostConfig and
// NetworkingConfig.
//
// It is pure: apart from the files that a flag names (--env-file,
// --label-file, a seccomp profile) and the environment that `-e NAME` asks
// for, it touches nothing, so that every form of every flag can be tested as a
// table. What it produces for a command line is what Docker 28's own client
// sends for the same line.
package spec
