package host

import "testing"

func TestUsage(t *testing.T) {
	u, err := ReadUsage()
	if err != nil || u.Busy == 0 || u.Total <= u.Busy || u.Memory <= 0 {
		t.Errorf("%+v, %v", u, err)
	}
	busy, total, err := parseCPU([]byte("cpu  10 1 5 100 50 2 3 4 7 0\ncpu0 1 1 1 1\n"))
	if err != nil || busy != 25 || total != 175 {
		t.Errorf("busy %d of %d, %v", busy, total, err)
	}
	for _, in := range []string{"", "cpu\n", "cpu0 1 2 3 4\n", "cpu a b c d\n", "cpu -1 2 3 4\n"} {
		if _, _, err := parseCPU([]byte(in)); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
	if n, err := parseUsed([]byte("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 40 kB\n")); err != nil || n != 60<<10 {
		t.Errorf("%d, %v", n, err)
	}
	for _, in := range []string{"", "MemAvailable: 1 kB\n", "MemTotal: x kB\n", "MemTotal: 1 kB\nMemAvailable: 2 kB\n"} {
		if _, err := parseUsed([]byte(in)); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}
