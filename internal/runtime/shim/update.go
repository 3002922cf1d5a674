package shim

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// Update changes the limits of a running container; see runtime.Runtime. The
// OCI runtime does it: it knows in which order the kernel takes them, in either
// version of cgroups.
func (r *Runtime) Update(ctx context.Context, u runtime.Update) error {
	if u.ID == "" || filepath.Base(u.ID) != u.ID || !filepath.IsAbs(u.RunDir) {
		return fmt.Errorf("update of container %q in %q: %w", u.ID, u.RunDir, errdefs.ErrInvalidArgument)
	}
	out, err := r.call(ctx, u.Runtime, u.Resources, "--log-format", "json", "--root", filepath.Join(u.RunDir, wire.RootName), "update", "--resources", "-", u.ID)
	if err == nil {
		return nil
	}
	said := refusal{text: err.Error(), log: string(out), stderr: string(out)}
	words := said.words()
	if words == "" {
		words = said.text
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	return fmt.Errorf("%s did not terminate successfully: %w: %s: unknown", filepath.Base(u.Runtime.Path), exit, words)
}
