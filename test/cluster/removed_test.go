package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRemovedNode: who has the certificate of a worker that was removed gets nothing of any node
// any more, although it is valid: not of managers, not of workers, and also not once their
// engines have started anew.
func TestRemovedNode(t *testing.T) {
	s := newSite(t, 3, 1)
	var id struct{ Key, Chain, Roots string }
	raw, err := os.ReadFile(filepath.Join("/var/lib/escale-dev", s.name, "n3", "data", "cluster", "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(id.Chain), []byte(id.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(id.Roots))
	list, err := s.members("n1")
	if err != nil {
		t.Fatal(err)
	}
	// ask asks a node for an image, as that worker does. It is an error to be told nothing.
	ask := func(n string) error {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: list[n].ID, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		}}
		res, err := client.Get(fmt.Sprintf("https://%s:7946/peer/1/image?name=%s", s.nodes[n].Address, url.QueryEscape("docker.io/library/"+image+":1")))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s %w", res.Status, body, err)
		}
		return nil
	}
	for _, n := range []string{"n1", "n2"} {
		s.till(n+" answers a node of the cluster", func() error { return ask(n) })
	}
	s.must("n1", http.MethodDelete, "/nodes/"+list["n3"].ID+"?force=1", nil, nil)
	refuses := func(n string) {
		t.Helper()
		s.till(n+" answers nobody who was removed", func() error {
			if err := ask(n); err == nil || !strings.Contains(err.Error(), "remote error: tls: ") { // or it does not listen yet
				return fmt.Errorf("it answers with %w", err)
			}
			return nil
		})
	}
	refuses("n1")
	refuses("n2")
	time.Sleep(2 * time.Second) // it keeps what it was told
	s.dev("stop", "n1", "n2")
	s.dev("start", "n2") // which reaches no manager
	refuses("n2")
}
