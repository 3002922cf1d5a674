package cluster

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The exercises of the courses, by the script that people run, with docker's own client against
// five nodes; `make trial` does all of them.
func TestCourse(t *testing.T) {
	for _, program := range []string{"docker", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs the command " + program)
		}
	}
	exercises := []string{"whoami", "update", "rollback", "drain", "promote"}
	if os.Getenv("ESCALE_TRIAL") != "" {
		exercises = nil
	}
	s := newSite(t, 5, 3)
	s.ready("n1")
	t.Setenv("EXAMPLES_DIR", t.TempDir())
	out, err := s.run("n1", append([]string{"../../examples/course/run.sh"}, exercises...)...)
	t.Log(out)
	if err != nil || !strings.HasSuffix(out, ", 0 failed") {
		t.Error(err)
	}
}
