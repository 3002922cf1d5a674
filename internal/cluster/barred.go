package cluster

import (
	"slices"
	"time"
)

// Barred is a node that was removed, until nobody would believe its certificate anyway.
type Barred struct {
	Node  string // id
	Until time.Time
}

// certLife is how long certificates of nodes are valid when nothing else is said; Docker's.
const certLife = 90 * 24 * time.Hour

// Bar notes that a node is removed, whose certificate is valid still, and forgets those whose
// certificates have ended.
func (c *Cluster) Bar(node string, now time.Time) {
	gone := func(b Barred) bool { return b.Node == node || !now.Before(b.Until) }
	life := max(certLife, c.Status.LongestCert, c.Spec.CAConfig.NodeCertExpiry)
	c.Status.Barred = append(slices.DeleteFunc(slices.Clone(c.Status.Barred), gone), Barred{node, now.Add(life).UTC()})
}

// BarredNodes are the ids of those that were removed and have certificates that may be valid.
func (c *Cluster) BarredNodes(now time.Time) (out []string) {
	for _, b := range c.Status.Barred {
		if now.Before(b.Until) {
			out = append(out, b.Node)
		}
	}
	return out
}
