package progress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
)

// The lines of a rotation; blanks bring the bars below each other.
const (
	rootLine  = "desired root digest"
	certLine  = "  rotated TLS certificates"
	trustLine = "  rotated CA certificates"
)

// Root waits until all nodes have certificates of the swarm's new root, and trust it.
// It blocks until then, an error of the engine, or ctx; Ctrl-C is no error.
func Root(ctx context.Context, c Engine, name string, out io.Writer, quiet bool) error {
	return show(out, quiet, func(s *screen) error {
		s.line(rootLine, "", jsonstream.Progress{})
		s.line(certLine, "", jsonstream.Progress{})
		s.line(trustLine, " ", jsonstream.Progress{})
		done := false
		err := again(ctx, func() (bool, error) {
			res, err := c.SwarmInspect(ctx, moby.SwarmInspectOptions{})
			if err != nil || done {
				return done, err
			}
			nodes, err := c.NodeList(ctx, moby.NodeListOptions{})
			if err == nil {
				done = s.root(&res.Swarm.ClusterInfo, nodes.Items)
			}
			return false, err
		})
		if err != errInterrupted {
			return err
		}
		if !done {
			s.say("", "Operation continuing in background.")
			s.say("", fmt.Sprintf("Use `%s swarm ca` to see the root that is wanted.", name))
		}
		return nil
	})
}

// root shows how many nodes have come to the root that is wanted, and tells whether all have.
func (s *screen) root(c *swarm.ClusterInfo, nodes []swarm.Node) bool {
	want := c.TLSInfo
	s.line(rootLine, fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(want.TrustRoot))), jsonstream.Progress{})
	var certs, roots int64
	for _, n := range nodes {
		have := n.Description.TLSInfo
		if bytes.Equal(have.CertIssuerPublicKey, want.CertIssuerPublicKey) && bytes.Equal(have.CertIssuerSubject, want.CertIssuerSubject) {
			certs++
		}
		if have.TrustRoot == want.TrustRoot {
			roots++
		}
	}
	all := int64(len(nodes))
	settled := certs == all && !c.RootRotationInProgress
	if !settled {
		roots = 0 // none is said to trust the new root alone before all have its certificates
	}
	s.line(certLine, "", jsonstream.Progress{Current: certs, Total: all, Units: "nodes"})
	s.line(trustLine, " ", jsonstream.Progress{Current: roots, Total: all, Units: "nodes"})
	return settled && roots == all
}
