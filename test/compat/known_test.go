package compat

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

const wordsFile = "testdata/requests/words"

const wordsHead = "# section request | place | peer | escale: what each says where a rule of accepted lets them differ in it.\n" +
	"# Written by go test ./test/compat -run TestBesidePeer -write-words; read what changed before it is kept.\n"

// known are the differences that are meant.
type known struct {
	rules []*rule
	words map[string]bool // lines of wordsFile
	seen  map[string]bool
	write bool
}

type verdict int

const (
	unknown    verdict = iota
	meant              // by a rule, and in these words
	otherWords         // a rule allows the difference, but not in these words
)

// pinned are the places where not only the difference is known, but what each says.
// Streams are not among them: their parts come in no fixed order.
var pinned = []string{"status", "body.message", "header Content-Type"}

func (k *known) judge(sec *section, ver string, rq *request, d difference) verdict {
	if !accepted(k.rules, sec.name+"/"+ver+" "+rq.text, d.path) {
		return unknown
	}
	if !slices.Contains(pinned, d.path) {
		return meant
	}
	line := strings.Join([]string{sec.name + " " + rq.text, d.path, d.want, d.got}, " | ")
	k.seen[line] = true
	if k.words[line] || k.write {
		return meant
	}
	return otherWords
}

// report tells what was not seen, and writes the words when that is asked.
func (k *known) report(t *testing.T) {
	t.Helper()
	for _, r := range k.rules {
		if r.used == 0 {
			t.Logf("accepted difference was not seen: %s", r.line)
		}
	}
	if k.write {
		if err := os.WriteFile(wordsFile, []byte(wordsHead+strings.Join(slices.Sorted(maps.Keys(k.seen)), "\n")+"\n"), 0o644); err != nil {
			t.Error(err)
		}
		return
	}
	for _, line := range slices.Sorted(maps.Keys(k.words)) {
		if !k.seen[line] {
			t.Logf("words were not seen: %s", line)
		}
	}
}

func readWords(t *testing.T, file string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, "\n"); line != "" && line[0] != '#' {
			out[line] = true
		}
	}
	return out
}

// A rule lets through what was looked at, and not whatever comes.
func TestKnownWords(t *testing.T) {
	sec, rq := &section{name: "missing"}, &request{text: "GET /x"}
	k := &known{
		rules: []*rule{{request: "missing/* *", places: "status"}, {request: "missing/* *", places: "body.L*"}},
		words: map[string]bool{"missing GET /x | status | 500 | 400": true}, seen: map[string]bool{},
	}
	for d, want := range map[difference]verdict{
		{"status", "500", "400"}: meant, {"status", "500", "404"}: otherWords, {"body.L[0]", "1", "2"}: meant, {"body.M", "1", "2"}: unknown,
	} {
		if got := k.judge(sec, "1.41", rq, d); got != want {
			t.Errorf("%v: %d, want %d", d, got, want)
		}
	}
}
