package service

import (
	"strings"
	"testing"
)

func TestParseDetails(t *testing.T) {
	for in, want := range map[string]string{"": "", "a=b": "a=b", "a=b%20c,d=": "a=b c d=", "x": "!", "%zz=1": "!", "a=%zz": "!"} {
		m, err := parseDetails(in)
		var got []string
		for _, k := range []string{"a", "d"} {
			if v, ok := m[k]; ok {
				got = append(got, k+"="+v)
			}
		}
		if (err != nil) != (want == "!") || err == nil && strings.Join(got, " ") != want {
			t.Errorf("%q: %v %v", in, m, err)
		}
	}
}

// What an engine sends before a line is read or refused, and the line comes through as it is.
func FuzzLine(f *testing.F) {
	const head = "com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t"
	f.Add(head+" a line\n", false, true)
	f.Add("2021-03-04T05:06:07Z "+head+",x=%20y line", true, true)
	f.Add("", false, false)
	f.Add("x y", true, false)
	f.Fuzz(func(t *testing.T, line string, times, details bool) {
		var out strings.Builder
		l := lines{func(source) (string, error) { return "web.1@here", nil }, times, details, &out}
		n, err := l.Write([]byte(line))
		if err == nil && (n != len(line) || !strings.Contains(out.String(), "web.1@here    | ")) {
			t.Errorf("%q: %d %q", line, n, out.String())
		}
	})
}
