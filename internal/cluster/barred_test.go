package cluster

import (
	"slices"
	"testing"
	"time"
)

// A node is barred for as long as a certificate of it can be valid, and forgotten then.
func TestBar(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := &Cluster{}
	c.Bar("a", now)
	before := c.Status.Barred
	c.Status.LongestCert = 2 * certLife
	c.Bar("b", now)
	c.Spec.CAConfig.NodeCertExpiry = 3 * certLife
	c.Bar("c", now)
	c.Bar("b", now)
	if len(before) != 1 || before[0].Node != "a" {
		t.Errorf("another's list was changed: %v", before)
	}
	for after, want := range map[time.Duration][]string{0: {"a", "c", "b"}, certLife - 1: {"a", "c", "b"}, certLife: {"c", "b"}, 3*certLife - 1: {"c", "b"}, 3 * certLife: nil} {
		if got := c.BarredNodes(now.Add(after)); !slices.Equal(got, want) {
			t.Errorf("after %v: %v", after, got)
		}
	}
	c.Bar("d", now.Add(3*certLife))
	if len(c.Status.Barred) != 1 {
		t.Errorf("kept: %v", c.Status.Barred)
	}
}
