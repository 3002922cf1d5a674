package native

import (
	"context"

	"escale.dev/escale/internal/runtime/native/cgroups"
)

// asking is the context of what is asked of systemd, which bounds it itself.
var asking = context.Background() // detached: it is all that a call of the program does

// startUnit has systemd make the container's scope, with what holds it until the container's
// process is in it.
func (b *birth) startUnit(rules *cgroups.Rules) (err error) {
	extra, err := cgroups.Annotated(b.spec.Annotations)
	if err != nil {
		return err
	}
	if b.holder, err = newHolder(b.self); err != nil {
		return err
	}
	if err := b.group.StartUnit(asking, b.unit, b.holder.pid, cgroups.Rounded(b.spec.Linux.Resources), rules, extra); err != nil {
		return err
	}
	b.scoped = true
	return nil
}
