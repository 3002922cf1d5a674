// Package oci holds tests that drive programs with the command line of an OCI runtime:
// the OCI's own validation, and the attacks of published advisories. They know nothing
// of how a runtime works inside, so runc and ours are tested by the same lines.
//
// RUNTIME names the program to test, or several with spaces between; without it that is
// bin/runc and bin/escale-runtime, as far as they are there.
package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program is an OCI runtime.
type program struct{ name, path string }

// reference is the program that others are measured against.
const reference = "runc"

// standing are the programs in bin that stand all attacks.
var standing = []string{reference, "escale-runtime"}

// programs are those to test, of which the test skips if there is none.
func programs(t *testing.T) []program {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs containers")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	var list []program
	if named := strings.Fields(os.Getenv("RUNTIME")); len(named) > 0 {
		for _, path := range named {
			if !filepath.IsAbs(path) {
				path = filepath.Join(bin, "..", path)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatal("RUNTIME: ", err)
			}
			list = append(list, program{filepath.Base(path), path})
		}
		return list
	}
	for _, name := range standing {
		if path := filepath.Join(bin, name); exists(path) {
			list = append(list, program{name, path})
		}
	}
	if len(list) == 0 {
		t.Skip("needs an OCI runtime: make build makes bin/runc")
	}
	return list
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// open is a temporary directory that the root of a user namespace can get into too.
func open(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
