package cluster

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/client"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

// keeper is a service that has a volume of some hundred megabytes, with all that volumes can hold.
type keeper struct {
	*site
	sum string // of what it has
}

// made fills a volume; what is in it has one sum wherever it is.
const made = `cd /data; test -f random || {
  dd if=/dev/urandom of=random bs=1M count=150; ln random hard; ln -s random soft; mkdir -p d/e; chown 1000:2000 d; chmod 1777 d/e
  truncate -s 1000000000 holes; echo end >>holes; mkfifo pipe; }
touch /data/ready; trap exit TERM; while :; do sleep 1; done`

// look is what tells two volumes apart.
const look = `cd /data; md5sum random soft; tail -c 4 holes; stat -c '%n %a %u:%g %s %h %Y %F' random hard soft d d/e holes pipe; test $(stat -c %b holes) -lt 1000 && echo sparse`

func newKeeper(t *testing.T) *keeper {
	k := &keeper{site: newSite(t, 4, 3)}
	k.ready("n1")
	spec := service("db", made, replicas(1))
	spec.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/data"}}
	k.create("n1", spec)
	k.running("n1", "db", 1)
	k.till("the volume is full", func() error {
		_, err := k.command("n1", "exec", "db.1", "test", "-f", "/data/ready")
		return err
	})
	k.sum = k.look("n1")
	return k
}

func (k *keeper) look(asked string) (out string) {
	k.Helper()
	k.till("the volume is read", func() (err error) {
		if out, err = k.command(asked, "exec", "db.1", "sh", "-c", look); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	return out
}

// at is the node that the task runs on.
func (k *keeper) at(asked string) string {
	k.Helper()
	k.running(asked, "db", 1)
	list, err := k.tasks(asked, "db")
	if err != nil {
		k.Fatal(err)
	}
	nodes, err := k.members(asked)
	if err != nil {
		k.Fatal(err)
	}
	for name, n := range nodes {
		if slices.ContainsFunc(list, func(t swarm.Task) bool { return t.NodeID == n.ID && t.Status.State == swarm.TaskStateRunning }) {
			return name
		}
	}
	k.Fatalf("nowhere: %+v", list)
	return ""
}

// whole wants the volume to be on one node alone, as it was, and the task to have it there.
func (k *keeper) whole(asked, where string) {
	k.Helper()
	if at := k.at(asked); where != "" && at != where {
		k.Errorf("the task runs on %s, not on %s", at, where)
	} else {
		where = at
	}
	if got := k.look(asked); got != k.sum {
		k.Errorf("the volume is\n%s\nit was\n%s", got, k.sum)
	}
	k.till("the volume is on one node", func() error {
		out, err := k.command(asked, "volume", "ls", "--cluster", "--format", "{{.Name}} {{.Node}}")
		if err != nil || out != "data "+k.name+"-"+where {
			return fmt.Errorf("%q on %s, %w", out, where, err)
		}
		return nil
	})
}

// begin begins a move and waits until the volume is being copied.
func (k *keeper) begin(asked, to string) (id string) {
	k.Helper()
	id, err := k.command(asked, "volume", "move", "-d", "data", k.name+"-"+to)
	if err != nil {
		k.Fatalf("%v: %s", err, id)
	}
	k.till("the volume is being copied", func() error {
		var m client.VolumeMove
		if err := k.do(asked, http.MethodGet, "/escale/moves/"+id, nil, &m); err != nil || m.Phase != "copying" {
			return fmt.Errorf("%+v, %w", m, err)
		}
		return nil
	})
	return id
}

// over waits for the end of a move.
func (k *keeper) over(asked, id string) (m client.VolumeMove) {
	k.Helper()
	k.till("the move is over", func() error {
		if err := k.do(asked, http.MethodGet, "/escale/moves/"+id, nil, &m); err != nil || !m.Over {
			return fmt.Errorf("%+v, %w", m, err)
		}
		return nil
	})
	return m
}

// TestVolumeMove: a volume of a service goes from node to node, while the nodes and the leader are killed
// in the middle of it: it is whole on one of them, and the task has it there.
func TestVolumeMove(t *testing.T) {
	k := newKeeper(t)
	from := k.at("n1")
	to := k.names(from)[0]
	begin := time.Now()
	if out, err := k.command("n2", "volume", "move", "data", k.name+"-"+to); err != nil || out != "data" {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("moved in %v", time.Since(begin))
	k.whole("n3", to)

	from = to
	if out, err := k.command(from, "create", "--name", "zoe", "-v", "data:/data", image+":1", "true"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	to = k.names(from)[0]
	if out, err := k.command("n1", "volume", "move", "data", k.name+"-"+to); err == nil || !strings.Contains(err.Error(), "by containers that are of no service: zoe") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := k.command(from, "rm", "zoe"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// The node that it goes to loses its power amid the copy.
	leader := k.leader("n1")
	to = k.names(from, leader)[0]
	asked := k.names(from, to, "n4")[0]
	id := k.begin(asked, to)
	k.dev("kill", to)
	k.dev("heal", to)
	if m := k.over(asked, id); m.Phase == "done" {
		from = to
	}
	k.whole(asked, from)

	// The leader does; it may be the node that has the volume.
	k.ready(asked)
	leader = k.leader(asked)
	to = k.names(from, leader)[0]
	asked = k.names(leader, "n4")[0]
	id = k.begin(asked, to)
	k.dev("kill", leader)
	if leader == from {
		k.dev("heal", leader)
	}
	if m := k.over(asked, id); m.Phase != "done" && leader != from {
		t.Errorf("the next leader has not brought it to its end: %+v", m)
	} else if m.Phase == "done" {
		from = to
	}
	if leader != from {
		k.dev("heal", leader)
	}
	k.whole(asked, from)

	// So does the node that it comes from.
	k.ready(asked)
	to = k.names(from)[0]
	asked = k.names(from, "n4")[0]
	id = k.begin(asked, to)
	k.dev("kill", from)
	k.dev("heal", from)
	if m := k.over(asked, id); m.Phase == "done" {
		from = to
	}
	k.whole(asked, from)
}
