package cgroup

import (
	"fmt"
	"strconv"
	"strings"
)

// maxListValue bounds what a list may name: the most processors a kernel is
// built for. Without it "0-9999999999" would take all memory.
const maxListValue = 8192

// ParseList reads a list of numbers as the kernel writes it, "0-3,7"
// (cpuset(7)); empty is the empty list. Its errors have Docker's words.
func ParseList(s string) (map[int]bool, error) {
	set := map[int]bool{}
	if s == "" {
		return set, nil
	}
	invalid := fmt.Errorf("invalid format: %s", s)
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.Atoi(first)
		if err != nil {
			return nil, invalid
		}
		to, err := strconv.Atoi(last)
		if err != nil || to < from || from < 0 {
			return nil, invalid
		}
		if to > maxListValue {
			return nil, fmt.Errorf("value of out range, maximum is %d", maxListValue)
		}
		for n := from; n <= to; n++ {
			set[n] = true
		}
	}
	return set, nil
}

// Available reports whether every number of list requested is in list
// available; the error is ParseList's about requested.
func Available(requested, available string) (bool, error) {
	want, err := ParseList(requested)
	if err != nil {
		return false, err
	}
	have, err := ParseList(available)
	if err != nil {
		return false, fmt.Errorf("available: %w", err)
	}
	for n := range want {
		if !have[n] {
			return false, nil
		}
	}
	return true, nil
}
