package shim

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkLifecycle shows what each step of a container's life costs here,
// beside what runc alone takes for the same bundle. The figures are medians.
func BenchmarkLifecycle(b *testing.B) {
	var launch, start, exit, cleanup, bare, bareDelete []time.Duration
	n := 0
	for b.Loop() {
		n++
		c := newBox(b, "true")
		ours := func() {
			t0 := time.Now()
			c.launchIt()
			t1 := time.Now()
			c.start()
			t2 := time.Now()
			c.wait("")
			t3 := time.Now()
			if err := c.r.Cleanup(ctxFor(b), c.cleanupArgs()); err != nil {
				b.Fatal(err)
			}
			launch, start, exit, cleanup = append(launch, t1.Sub(t0)), append(start, t2.Sub(t1)), append(exit, t3.Sub(t2)), append(cleanup, time.Since(t3))
		}
		theirs := func() {
			root := filepath.Join(c.launch.RunDir, "bare")
			t0 := time.Now()
			if err := exec.Command(runcPath, "--root", root, "--log", root+".log", "--log-format", "json", "run", "--pid-file", root+".pid", "--detach", "--bundle", c.launch.Bundle, c.launch.ID).Run(); err != nil {
				b.Fatal(err)
			}
			bare = append(bare, time.Since(t0))
			time.Sleep(5 * time.Millisecond) // let it end
			t1 := time.Now()
			if out, err := exec.Command(runcPath, "--root", root, "delete", "--force", c.launch.ID).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			bareDelete = append(bareDelete, time.Since(t1))
		}
		// Whoever comes first pays for the kernel's first move between cgroups.
		if n%2 == 0 {
			ours()
			theirs()
		} else {
			theirs()
			ours()
		}
		time.Sleep(50 * time.Millisecond)
	}
	ms := func(d []time.Duration, name string) {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-ms")
	}
	ms(launch, "launch")
	ms(start, "start")
	ms(exit, "exit")
	ms(cleanup, "cleanup")
	ms(bare, "runc-run")
	ms(bareDelete, "runc-delete")
}
