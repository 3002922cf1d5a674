package cli_test

import (
	"strings"
	"testing"
)

// escaleOn runs a line of escale's on a cluster on paper.
func escaleOn(t *testing.T, p *paper, line string) told {
	t.Helper()
	return runSwarm(t, p, swarmDir(t), "escale", line, true)
}

// A secret or config gets other content by a verb that Docker's client does not have; the
// services that have it are waited for, unless it is asked not to.
func TestSecretUpdate(t *testing.T) {
	p := newPaper(t)
	for _, kind := range []string{"secret", "config"} {
		r := escaleOn(t, p, kind+" update -d key2 secret")
		if want := "POST /escale/" + kind + `s/key2/renew  {"Data":"aHVzaA=="}`; r.code != 0 || len(r.sent) != 1 || r.sent[0] != want || r.out != id("new")+"\n" {
			t.Errorf("%s: %d %q %q %q, want %q", kind, r.code, r.out, r.err, r.sent, want)
		}
		r = escaleOn(t, p, kind+" update key2 - <secret")
		if r.code != 0 || len(r.sent) != 1 || !strings.Contains(r.out, p.services[0].Spec.Name+":\n") || !strings.Contains(r.out, "converged") {
			t.Errorf("%s: %d %q %q %q", kind, r.code, r.out, r.err, r.sent)
		}
		for line, words := range map[string]string{"key2 empty": "data is empty", "key2 nosuch": "no such file", "nosuch secret": "no such thing", "key2": "requires 2 arguments"} {
			if r := escaleOn(t, p, kind+" update "+line); r.code == 0 || !strings.Contains(r.err, words) {
				t.Errorf("%s update %s: %d %q, want %q", kind, line, r.code, r.err, words)
			}
		}
	}
	if r := escaleOn(t, p, "__complete secret update k"); !strings.Contains(r.out, "key2\n") {
		t.Errorf("completion: %q", r.out)
	}
}

// Labels of the cluster, which permit things, are set by options that Docker's client does not have.
func TestSwarmLabels(t *testing.T) {
	p := newPaper(t)
	p.swarm.Spec.Labels = map[string]string{"old": "x"}
	r := escaleOn(t, p, "swarm update --label-add escale.permit=devices --label-add zone=a --label-rm old")
	if want := `"Labels":{"escale.permit":"devices","zone":"a"}`; r.code != 0 || len(r.sent) != 1 || !strings.Contains(r.sent[0], want) {
		t.Errorf("%d %q %q, want %s", r.code, r.err, r.sent, want)
	}
	if r := escaleOn(t, p, "swarm update --label-rm nosuch"); r.code == 0 || len(r.sent) != 0 || !strings.Contains(r.err, "key nosuch doesn't exist in swarm's labels") {
		t.Errorf("%d %q %q", r.code, r.err, r.sent)
	}
}
