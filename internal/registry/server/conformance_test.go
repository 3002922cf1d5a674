package server

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestConformance runs the OCI's suite, all four workflows. `make conformance`
// builds the suite and names it in ESCALE_CONFORMANCE.
func TestConformance(t *testing.T) {
	suite := os.Getenv("ESCALE_CONFORMANCE")
	if suite == "" {
		t.Skip("needs the OCI's conformance suite: run it by `make conformance`, which fetches and builds it")
	}
	r := start(t, nil)
	cmd := exec.CommandContext(t.Context(), suite)
	dir := t.TempDir()
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "OCI_ROOT_URL="+r.url, "OCI_NAMESPACE=suite/one", "OCI_CROSSMOUNT_NAMESPACE=suite/two",
		"OCI_TEST_PULL=1", "OCI_TEST_PUSH=1", "OCI_TEST_CONTENT_DISCOVERY=1", "OCI_TEST_CONTENT_MANAGEMENT=1",
		"OCI_DELETE_MANIFEST_BEFORE_BLOBS=1", "OCI_HIDE_SKIPPED_WORKFLOWS=0", "OCI_REPORT_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if keep := os.Getenv("ESCALE_CONFORMANCE_LOG"); keep != "" {
		if err := os.WriteFile(filepath.Clean(keep), out, 0o644); err != nil {
			t.Error(err)
		}
	}
	ran := regexp.MustCompile(`(?m)^.*Ran (\d+) of (\d+) Specs.*$`).Find(out)
	t.Logf("%s\n%s", ran, regexp.MustCompile(`(?m)^.*\d+ Passed.*$`).Find(out))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if ran == nil {
		t.Fatalf("the suite ran nothing:\n%s", out)
	}
}
