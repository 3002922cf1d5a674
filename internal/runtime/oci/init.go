package oci

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// initNames are programs that do as an init in a container, started as
// "NAME -- COMMAND": they reap, and pass signals on.
var initNames = []string{"docker-init", "tini-static", "tini"}

// LookupInit finds the init binary that --init gives to containers: the one
// that the engine is configured with (a name or an absolute path; empty: none),
// else the usual ones in dirs and then in PATH. It has to be linked statically,
// for it runs in the container's tree. ErrNotFound when there is none.
func LookupInit(configured string, dirs ...string) (string, error) {
	names := initNames
	if configured != "" {
		if filepath.IsAbs(configured) {
			return configured, checkStatic(configured)
		}
		names = []string{configured}
	}
	var first error
	for _, name := range names {
		var candidates []string
		for _, dir := range dirs {
			candidates = append(candidates, filepath.Join(dir, name))
		}
		if path, err := exec.LookPath(name); err == nil {
			candidates = append(candidates, path)
		}
		for _, path := range candidates {
			path, err := filepath.EvalSymlinks(path)
			if err != nil {
				continue
			}
			err = checkStatic(path)
			if err == nil {
				return path, nil
			}
			if first == nil {
				first = err
			}
		}
	}
	if first != nil {
		return "", first
	}
	return "", fmt.Errorf("init binary %q in $PATH: %w", names[0], errdefs.ErrNotFound)
}

// checkStatic refuses programs that need a loader.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("init binary %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("init binary %s: not linked statically: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
