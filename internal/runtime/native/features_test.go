package native

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// What runc says that it can do, this runtime says too, but for what is refused by name.
func TestFeatures(t *testing.T) {
	runc, err := filepath.Abs("../../../bin/runc")
	if err != nil || !exists(runc) {
		t.Skip("needs bin/runc: make build makes it")
	}
	said, err := exec.Command(runc, "features").Output()
	if err != nil {
		t.Fatal(err)
	}
	var theirs, ours features.Features
	if err := json.Unmarshal(said, &theirs); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := (&runtime{out: &out}).features(nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &ours); err != nil {
		t.Fatal(err)
	}
	refused := []string{"SCMP_ACT_NOTIFY", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}
	for name, lists := range map[string][2][]string{
		"hooks": {theirs.Hooks, ours.Hooks}, "mount options": {theirs.MountOptions, ours.MountOptions}, "namespaces": {theirs.Linux.Namespaces, ours.Linux.Namespaces},
		"capabilities": {theirs.Linux.Capabilities, ours.Linux.Capabilities}, "actions": {theirs.Linux.Seccomp.Actions, ours.Linux.Seccomp.Actions},
		"operators": {theirs.Linux.Seccomp.Operators, ours.Linux.Seccomp.Operators}, "archs": {theirs.Linux.Seccomp.Archs, ours.Linux.Seccomp.Archs},
		"flags": {theirs.Linux.Seccomp.KnownFlags, ours.Linux.Seccomp.KnownFlags}, "modes": {theirs.Linux.MemoryPolicy.Modes, ours.Linux.MemoryPolicy.Modes},
		"memory flags": {theirs.Linux.MemoryPolicy.Flags, ours.Linux.MemoryPolicy.Flags},
	} {
		if len(lists[0]) == 0 || !slices.IsSorted(lists[1]) && name != "hooks" && name != "capabilities" {
			t.Errorf("%s: runc has %v, here are %v", name, lists[0], lists[1])
		}
		for _, word := range lists[0] {
			if !slices.Contains(lists[1], word) && !slices.Contains(refused, word) {
				t.Errorf("%s: %s is missing", name, word)
			}
		}
	}
	if !*ours.Linux.Seccomp.Enabled || *ours.Linux.NetDevices.Enabled || *ours.Linux.IntelRdt.Enabled {
		t.Errorf("%s", out.Bytes())
	}
}
