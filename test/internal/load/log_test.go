package load

import "testing"

func TestParseLog(t *testing.T) {
	const a, z = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	for _, c := range []struct {
		name, text             string
		runs, lost, twice, odd int
		ended                  bool
	}{
		{"whole", a + " 0\n" + a + " 1\n" + a + " 2 end\n", 1, 0, 0, 0, true},
		{"no end", a + " 0\n" + a + " 1\n", 1, 0, 0, 0, false},
		{"gap", a + " 0\n" + a + " 3\n" + a + " 4 end\n", 1, 2, 0, 0, true},
		{"gap at the end", a + " 0\n" + a + " 4 end\n", 1, 3, 0, 0, true},
		{"gap at the start", a + " 2\n", 1, 2, 0, 0, false},
		{"twice", a + " 0\n" + a + " 0\n" + a + " 1\n", 1, 0, 1, 0, false},
		{"end twice", a + " 0 end\n" + a + " 0 end\n", 1, 0, 1, 0, true},
		{"two runs", a + " 0\n" + z + " 0\n" + z + " 1 end\n", 2, 0, 0, 0, true},
		{"killed amid a line", a + " 10" + z + " 0\n" + z + " 1 end\n", 2, 0, 0, 0, true},
		{"killed amid an identity", a + " 0\n1111" + z + " 0\n", 2, 0, 0, 0, false},
		{"mixed", a + " 0\n" + z + " 0\n" + a + " 1\n", 2, 0, 0, 1, false},
		{"foreign bytes", a + " 0\nxx\n" + a + " 1\n", 1, 0, 0, 1, false},
		{"only foreign bytes", "xx\n", 0, 0, 0, 1, false},
		{"empty", "", 0, 0, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := parseLog([]byte(c.text))
			lost, twice, ended := 0, 0, false
			for _, r := range l.runs {
				lost, twice, ended = lost+r.lost, twice+r.doubled, r.ended
			}
			if len(l.runs) != c.runs || lost != c.lost || twice != c.twice || len(l.junk) != c.odd || ended != c.ended {
				t.Errorf("runs %d lost %d twice %d junk %q ended %v, want %d %d %d %d %v",
					len(l.runs), lost, twice, l.junk, ended, c.runs, c.lost, c.twice, c.odd, c.ended)
			}
		})
	}
}
