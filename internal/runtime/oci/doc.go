// Package oci turns what a client asked of a container (Docker's Config and
// HostConfig) into an OCI runtime specification, with Docker's defaults and
// refusals, and makes the processes of execs in it.
//
// A [Builder] is made once from a [Host], the facts of the machine, so that the
// same input gives the same specification everywhere. What a container needs
// from other concerns comes resolved in [Options]: its mounted root, volumes,
// network namespace, namespaces of other containers.
//
// HOME is left to the OCI runtime, as Docker does: only inside the container is
// it known which passwd file is in force.
//
// The form is that of the OCI runtime specification 1.x (config.md,
// config-linux.md).
package oci

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// invalid is a refusal of what a client asked, in exactly these words.
func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// words is an error without a kind, in exactly these words.
func words(format string, args ...any) error { return plain(fmt.Sprintf(format, args...)) }

type plain string

func (p plain) Error() string { return string(p) }
