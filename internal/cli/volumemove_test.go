package cli_test

import (
	"net/http"
	"strings"
	"testing"
)

// own answers what Docker's API does not have: the volumes of all nodes, and a move that goes on with each
// look at it, to its end, or back once it was canceled.
func (p *paper) own(w http.ResponseWriter, parts []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	node := func(name string) map[string]string { return map[string]string{"ID": id("nod" + name), "Name": name} }
	switch {
	case parts[0] == "volumes":
		reply(w, 200, map[string]any{
			"Volumes": []any{map[string]any{"Name": "data", "Driver": "local", "Node": node("east2")}, map[string]any{"Name": "data", "Driver": "local", "Node": node("east10")}},
			"Missing": []string{"west"},
		})
	case parts[0] == "moves" && len(parts) == 2 && (parts[1] == "move1" || parts[1] == "data"):
		phases := []string{"", "holding", "copying", "copying", "moved", "dropping", "done"}
		message := ""
		for _, s := range p.sent {
			if strings.HasPrefix(s, "DELETE") || strings.Contains(s, "full") {
				phases, message = []string{"undoing", "undone"}, "the disk is full"
			}
		}
		phase := phases[min(p.looks, len(phases)-1)]
		p.looks++
		reply(w, 200, map[string]any{
			"ID": "move1", "Volumes": []string{"data"}, "From": node("east2"), "To": node("east10"), "Phase": phase, "Message": message, "Bytes": 5, "Total": 10,
			"Over": phase == "done" || phase == "undone",
		})
	default:
		declined(w, 404, "no move of volume "+parts[len(parts)-1]+" is under way")
	}
}

// A move is followed to its end, and what became of it is said.
func TestVolumeMoveVerb(t *testing.T) {
	for _, x := range []struct {
		line, out, err, sent string
		code                 int
	}{
		{"volume move --from east2 --keep data more east10", "data\nmore\n", "Waiting for its turn\nTasks that have data on east2 end\nCopying from east2 to east10 (1 of 1)\nAll is on east10\nTasks start on east10\n",
			`POST /escale/moves  {"From":"east2","Keep":true,"To":"east10","Volumes":["data","more"]}`, 0},
		{"volume move -q data east10", "data\n", "", `POST /escale/moves  {"To":"east10","Volumes":["data"]}`, 0},
		{"volume move -d data east10", "move1\n", "", `POST /escale/moves  {"To":"east10","Volumes":["data"]}`, 0},
		{"volume move data full", "", "Undoing: the disk is full\nthe volumes stay where they were: the disk is full\n", `POST /escale/moves  {"To":"full","Volumes":["data"]}`, 1},
		{"volume move --cancel data", "data\n", "", "DELETE /escale/moves/move1 ", 0},
		{"volume move --cancel other", "", "Error response from daemon: no move of volume other is under way\n", "", 1},
		{"volume move data", "", "requires at least 2 argument", "", 1},
		{"volume ls --cluster", "DRIVER    VOLUME NAME   NODE\nlocal     data          east2\nlocal     data          east10\n", "node west is not available: its volumes are not listed", "", 0},
		{"volume ls --cluster -q", "data\n", "west", "", 0},
		{"volume ls --cluster --format '{{.Name}} {{.Node}}'", "data east2\ndata east10\n", "west", "", 0},
		{"volume ls --cluster --filter name=x", "", "--filter cannot be used with --cluster", "", 1},
		{"__complete volume move d", "data\n", "", "", 0},
		{"__complete volume move data e", "east2\n", "", "", 0},
		{"__complete volume move --from e", "east10\n", "", "", 0},
	} {
		p := newPaper(t)
		r := escaleOn(t, p, x.line)
		if strings.Count(r.out, "data\n") > 1 && strings.HasPrefix(x.line, "__complete") {
			t.Errorf("%s: offered twice: %q", x.line, r.out)
		}
		if r.code != x.code || strings.Join(r.sent, "\n") != x.sent || !strings.Contains(r.err, x.err) || !strings.Contains(r.out, x.out) {
			t.Errorf("%s: %d\n out %q\n err %q\nsent %q\nwant %d %q %q %q", x.line, r.code, r.out, r.err, r.sent, x.code, x.out, x.err, x.sent)
		}
	}
}
