package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// daemonCommand becomes the engine's own program, `escaled`, which is a file
// of its own so that this one stays small.
func daemonCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "daemon [OPTIONS]",
		Long: "All options are escaled's: see 'escale daemon --help'.",
		Example: `escale daemon
escale daemon --data-root /srv/escale --instance lab -H unix:///run/lab.sock`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findEngine()
			if err != nil {
				return err
			}
			return fmt.Errorf("%s: %w", path, syscall.Exec(path, append([]string{"escaled"}, args...), os.Environ()))
		},
	}
}

// findEngine looks for escaled beside this program, in libexec where it is
// installed, and on PATH.
func findEngine() (string, error) {
	var tried []string
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		dir := filepath.Dir(self)
		tried = append(tried, filepath.Join(dir, "escaled"), filepath.Join(dir, "..", "libexec", "escale", "escaled"))
	}
	for _, p := range tried {
		if info, err := os.Stat(p); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return filepath.Clean(p), nil
		}
	}
	p, err := exec.LookPath("escaled")
	if err == nil {
		return filepath.Abs(p)
	}
	return "", errors.New("escaled, the engine's program, is neither beside this one, nor in ../libexec/escale, nor on PATH; 'make install' puts it in place")
}
