package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFigures prints what a cluster of five costs and how fast it is, with ESCALE_TRIAL=1: how long it takes
// until a hundred tasks run, what goes between nodes that have nothing to do, and memory.
func TestFigures(t *testing.T) {
	if os.Getenv("ESCALE_TRIAL") == "" {
		t.Skip("ESCALE_TRIAL=1 asks for figures")
	}
	s := newSite(t, 5, 3)
	s.ready("n1")
	leader := s.leader("n1")
	s.idle("idle, no services")
	for _, n := range []string{"n1", "n5"} {
		s.memory(n, n == leader)
	}
	s.create(leader, service("many", "trap exit TERM; sleep 100000 & wait", replicas(1)))
	s.running(leader, "many", 1)
	begin := s.scale(leader, "many", 100)
	s.running(leader, "many", 100)
	took := time.Since(begin)
	t.Logf("scale 1 to 100: %v until all run, %.1f tasks started a second", round(took), 99/took.Seconds())
	s.idle("idle, 100 tasks")
	for _, n := range []string{"n1", "n5"} {
		s.memory(n, n == leader)
	}
	begin = s.scale(leader, "many", 1)
	s.running(leader, "many", 1)
	t.Logf("scale 100 to 1: %v", round(time.Since(begin)))
}

// idleFor is how long it is counted what goes between nodes.
const idleFor = 10 * time.Second

// idle tells how many packets each node sends a second.
func (s *site) idle(what string) {
	s.Helper()
	time.Sleep(3 * time.Second) // what was done just now comes to its end
	before := map[string]int64{}
	for _, n := range s.names() {
		before[n] = s.sent(n)
	}
	time.Sleep(idleFor)
	var line strings.Builder
	all := 0.0
	for _, n := range s.names() {
		rate := float64(s.sent(n)-before[n]) / idleFor.Seconds()
		all += rate
		fmt.Fprintf(&line, " %s %.1f", n, rate)
	}
	s.Logf("%s: %.1f packets a second are sent by all nodes:%s", what, all, line.String())
}

// sent counts the packets that a node has sent, but for those to itself.
func (s *site) sent(n string) (packets int64) {
	s.Helper()
	out, err := exec.CommandContext(s.Context(), "ip", "netns", "exec", s.name+"-"+n, "cat", "/proc/net/dev").Output()
	if err != nil {
		s.Fatalf("what %s has sent: %v", n, err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(rest)
		if !ok || name != "eth0" || len(fields) < 10 {
			continue
		}
		k, err := strconv.ParseInt(fields[9], 10, 64)
		if err != nil {
			s.Fatal(line)
		}
		packets += k
	}
	return packets
}

// memory tells what a node's programs have, each its part of what they share.
func (s *site) memory(n string, leads bool) {
	s.Helper()
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(strings.TrimPrefix(s.nodes[n].Socket, "unix://")), "escaled.pid"))
	if err != nil {
		s.Fatal(err)
	}
	pid := strings.TrimSpace(string(raw))
	line := "engine " + pss(pid)
	children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	if err != nil {
		s.Fatal(err)
	}
	list, _ := filepath.Glob("/proc/" + pid + "/task/*/children")
	for _, f := range list {
		more, _ := os.ReadFile(f) // a thread may have ended
		children = append(append(children, ' '), more...)
	}
	seen := map[string]bool{}
	for _, child := range strings.Fields(string(children)) {
		if name, err := os.ReadFile("/proc/" + child + "/comm"); err == nil && strings.TrimSpace(string(name)) == "escale-store" && !seen[child] {
			seen[child] = true
			line += ", store " + pss(child)
		}
	}
	s.Logf("%s (%s, leads: %t): PSS of %s", n, s.nodes[n].Role, leads, line)
}

func pss(pid string) string {
	raw, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		return err.Error()
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			kb, _ := strconv.Atoi(f[1])
			return fmt.Sprintf("%.1f MB", float64(kb)/1024)
		}
	}
	return "unknown"
}
