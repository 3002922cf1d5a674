package ship

import (
	"bytes"
	"fmt"
	"log/slog"
	"regexp"
	"testing"

	"escale.dev/escale/internal/logs"
)

// A line that was rotated away is counted once, although the position was put back to
// before it; what had been sent and cannot be sent again is counted apart.
func TestGapsAreCountedOnce(t *testing.T) {
	for _, c := range []struct {
		reach int64
		gaps  []logs.Gap
		want  string
	}{
		{0, []logs.Gap{{From: 0, To: 5}}, "[5]"},
		{100, []logs.Gap{{From: 100, To: 140}, {From: 200, To: 210}}, "[40 10]"},
		{100, []logs.Gap{{From: 100, To: 140}, {From: 100, To: 140}}, "[40]"},
		{100, []logs.Gap{{From: 100, To: 140}, {From: 100, To: 150}}, "[40 10]"},
		{100, []logs.Gap{{From: 90, To: 140}}, "[40 again 10]"},
		{100, []logs.Gap{{From: 100, To: 140}, {From: 90, To: 150}}, "[40 10 again 10]"},
		{100, []logs.Gap{{From: 60, To: 80}}, "[again 20]"},
	} {
		var said bytes.Buffer
		s := &shipper{log: slog.New(slog.NewTextHandler(&said, nil)), reach: c.reach}
		for _, g := range c.gaps {
			s.tellGap(g)
		}
		var got []string
		for _, m := range regexp.MustCompile(`(broken connection)?[^\n]* lines=(\d+)`).FindAllStringSubmatch(said.String(), -1) {
			if bytes.Contains([]byte(m[0]), []byte("broken connection")) {
				got = append(got, "again")
			}
			got = append(got, m[2])
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%v behind %d: told %v, want %s", c.gaps, c.reach, got, c.want)
		}
	}
}
