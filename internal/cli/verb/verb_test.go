package verb

import (
	"slices"
	"strings"
	"testing"
)

func TestNatural(t *testing.T) {
	words := []string{"web.10", "web.2", "web", "a", "web.02", "", "b10", "b9", "9", "web.2a"}
	slices.SortFunc(words, Natural)
	if got := strings.Join(words, " "); got != " 9 a b9 b10 web web.2 web.2a web.02 web.10" {
		t.Error(got)
	}
}

func TestFilter(t *testing.T) {
	var f Filter
	for _, s := range []string{"Name = x", "name=y", "", "label=a=b"} {
		if err := f.Set(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Set("x"); err == nil {
		t.Error("no refusal")
	}
	g := f.With("name", "z")
	if len(f["name"]) != 2 || !f["name"]["x"] || !f["label"]["a=b"] || len(g["name"]) != 3 {
		t.Errorf("%v %v", f, g)
	}
}
