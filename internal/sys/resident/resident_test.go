package resident

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const smaps = `00400000-019ba000 r-xp 00000000 fe:00 9986542                            /opt/a b/escaled
Size:              22248 kB
Rss:               15880 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
019ba000-0309a000 r--p 015ba000 fe:00 9986542                            /opt/a b/escaled
Rss:               20032 kB
Anonymous:             0 kB
0309a000-03164000 rw-p 02c9a000 fe:00 9986542                            /opt/a b/escaled
Rss:                 616 kB
Anonymous:           228 kB
1a9e68800000-1a9e69400000 rw-p 00000000 00:00 0 
Rss:                4132 kB
Anonymous:          4132 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 9986543                    /opt/a b/escaled.old
Rss:                   4 kB
Anonymous:             0 kB
7fff00000000-7fff00001000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   4 kB
Anonymous:             0 kB
`

func TestParse(t *testing.T) {
	code := mapping{0x400000, 0x19ba000, 15880 << 10}
	constants := mapping{0x19ba000, 0x309a000, 20032 << 10}
	for _, c := range []struct {
		name, smaps, path string
		want              []mapping
	}{
		{"what is not writable", smaps, "/opt/a b/escaled", []mapping{code, constants}},
		{"another program", smaps, "/opt/escaled", nil},
		{"a breakpoint in the code", strings.Replace(smaps, "Anonymous:             0", "Anonymous:             4", 1), "/opt/a b/escaled", []mapping{constants}},
		{"nothing", "", "/opt/a b/escaled", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.smaps), c.path)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%x, %v; want %x", got, err, c.want)
			}
		})
	}
	for _, bad := range []string{
		"00400000-019ba000\n", "00400000 r-xp 0 fe:00 1 /x\n", "x-y r-xp 0 fe:00 1 /x\n", "2000-1000 r-xp 0 fe:00 1 /x\n", "1000-2000 r-xp 0 fe:00 1 /x\nRss: many kB\n",
	} {
		if got, err := parse(strings.NewReader(bad), "/x"); err == nil {
			t.Errorf("%q: %x, want an error", bad, got)
		}
	}
}

// What is unmapped comes back: the test goes on in the code that was given back.
func TestRelease(t *testing.T) {
	before := program(t)
	n, err := Release()
	if err != nil {
		t.Fatal(err)
	}
	if n < 1<<20 {
		t.Errorf("%d bytes unmapped of a program that had %d resident", n, before)
	}
	if after := program(t); after >= before {
		t.Errorf("the program had %d bytes resident, and has %d", before, after)
	}
}

// program is how many bytes of this program's code and constants are resident.
func program(t *testing.T) (n int64) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := parse(f, exe)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		n += m.resident
	}
	return n
}

// It is counted, and not there.
func TestBallast(t *testing.T) {
	rss := func() int {
		b, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.Fields(string(b))[1])
		if err != nil {
			t.Fatal(err)
		}
		return n * os.Getpagesize()
	}
	const size = 256 << 20
	debug.FreeOSMemory()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	had := rss()
	ballast := Ballast(size)
	debug.FreeOSMemory()
	runtime.ReadMemStats(&after)
	if more := rss() - had; more > size/8 {
		t.Errorf("it takes %d MB", more>>20)
	}
	if after.NextGC < before.NextGC+size {
		t.Errorf("the next collection is due at %d MB", after.NextGC>>20)
	}
	runtime.KeepAlive(ballast)
}
