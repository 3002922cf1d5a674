package server

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rule says which tags a collection removes: of the tags it is about, those that
// are neither among the newest Last of their repository nor younger than Older.
type Rule struct {
	Repos string        // pattern of names: * is any part between slashes, ** any number of them
	Tags  string        // pattern of tags
	Last  int           // how many of the newest stay; -1: not said
	Older time.Duration // under which age tags stay; -1: not said
}

// maxRule bounds the text of a rule, in bytes.
const maxRule = 1024

// ParseRule reads "REPOSITORIES[:TAGS] [last=N] [older=AGE]", one of the last two
// at least; AGE is a number with d (days) or what Go's durations have. Kind:
// InvalidArgument.
func ParseRule(text string) (Rule, error) {
	bad := func(why string) (Rule, error) {
		return Rule{}, invalid("retention rule %.200q: %s; want 'REPOSITORIES[:TAGS] last=N older=AGE'", text, why)
	}
	words := strings.Fields(text)
	if len(words) == 0 || len(text) > maxRule {
		return bad("empty, or too long")
	}
	r := Rule{Last: -1, Older: -1}
	var some bool
	r.Repos, r.Tags, some = strings.Cut(words[0], ":")
	if !some {
		r.Tags = "*"
	}
	for _, p := range []string{strings.ReplaceAll(r.Repos, "**", "*"), r.Tags} {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return bad("no pattern")
		}
	}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		var err error
		switch {
		case k == "last" && r.Last < 0:
			if r.Last, err = strconv.Atoi(v); err != nil || r.Last < 0 {
				return bad("last is no number")
			}
		case k == "older" && r.Older < 0:
			if r.Older, err = ParseAge(v); err != nil {
				return bad(err.Error())
			}
		default:
			return bad(fmt.Sprintf("%q is unknown, or said twice", k))
		}
	}
	if r.Last < 0 && r.Older < 0 {
		return bad("neither last nor older is said")
	}
	return r, nil
}

// ParseAge reads 30d, 12h, 1h30m; not negative.
func ParseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%.40q is no age (30d, 12h, 90m)", s)
	}
	return d, nil
}

// about reports whether the rule is about a repository.
func (r Rule) about(name string) bool {
	return matchName(strings.Split(r.Repos, "/"), strings.Split(name, "/"))
}

// matchName goes back to the last ** only, which is enough, or a rule of many
// would take for ever.
func matchName(pattern, name []string) bool {
	p, n, star, from := 0, 0, -1, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == "**" {
			star, from = p, n
			p++
			continue
		}
		if p < len(pattern) {
			if ok, err := path.Match(pattern[p], name[n]); err == nil && ok {
				p, n = p+1, n+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, n = star+1, from
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

// tagState is a tag as rules see it.
type tagState struct {
	name string
	set  time.Time
}

// expired are the tags of a repository that a rule removes, oldest first.
func (r Rule) expired(list []tagState, now time.Time) []tagState {
	var mine []tagState
	for _, t := range list {
		if ok, err := path.Match(r.Tags, t.name); err == nil && ok {
			mine = append(mine, t)
		}
	}
	slices.SortFunc(mine, func(a, b tagState) int {
		if c := a.set.Compare(b.set); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	if r.Last >= 0 {
		mine = mine[:max(0, len(mine)-r.Last)]
	}
	if r.Older >= 0 {
		mine = slices.DeleteFunc(mine, func(t tagState) bool { return now.Sub(t.set) < r.Older })
	}
	return mine
}
