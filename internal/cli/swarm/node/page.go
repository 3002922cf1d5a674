package node

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"

	"escale.dev/escale/internal/cli/swarm/inspect"
	"escale.dev/escale/internal/cli/swarm/task"
)

// page is a node for people, in the columns of Docker's client.
type page struct{ n *swarm.Node }

func (p page) write(w io.Writer) {
	n := p.n
	fmt.Fprintf(w, "ID:\t\t\t%s\n", n.ID)
	if n.Spec.Name != "" {
		fmt.Fprintf(w, "Name:\t\t\t%s\n", n.Spec.Name)
	}
	inspect.Labels(w, "Labels:", " - ", n.Spec.Labels)
	fmt.Fprintf(w, "Hostname:              \t%s\nJoined at:             \t%s\n", n.Description.Hostname, task.Title(n.CreatedAt.String()))
	fmt.Fprintf(w, "Status:\n State:\t\t\t%s\n", task.Title(string(n.Status.State)))
	if n.Status.Message != "" {
		fmt.Fprintf(w, " Message:              \t%s\n", task.Title(n.Status.Message))
	}
	fmt.Fprintf(w, " Availability:         \t%s\n", task.Title(string(n.Spec.Availability)))
	if n.Status.Addr != "" {
		fmt.Fprintf(w, " Address:\t\t%s\n", n.Status.Addr)
	}
	if m := n.ManagerStatus; m != nil {
		leader := "No"
		if m.Leader {
			leader = "Yes"
		}
		fmt.Fprintf(w, "Manager Status:\n Address:\t\t%s\n Raft Status:\t\t%s\n Leader:\t\t%s\n", m.Addr, task.Title(string(m.Reachability)), leader)
	}
	p.description(w)
}

func (p page) description(w io.Writer) {
	d := p.n.Description
	memory := ""
	if d.Resources.MemoryBytes != 0 {
		memory = units.BytesSize(float64(d.Resources.MemoryBytes))
	}
	fmt.Fprintf(w, "Platform:\n Operating System:\t%s\n Architecture:\t\t%s\n", d.Platform.OS, d.Platform.Architecture)
	fmt.Fprintf(w, "Resources:\n CPUs:\t\t\t%d\n Memory:\t\t%s\n", d.Resources.NanoCPUs/1e9, memory)
	byType := map[string][]string{}
	for _, x := range d.Engine.Plugins {
		byType[x.Type] = append(byType[x.Type], x.Name)
	}
	if len(byType) > 0 {
		fmt.Fprintln(w, "Plugins:")
	}
	for _, kind := range slices.Sorted(maps.Keys(byType)) {
		fmt.Fprintf(w, " %s:\t\t%s\n", kind, strings.Join(byType[kind], ", "))
	}
	fmt.Fprintf(w, "Engine Version:\t\t%s\n", d.Engine.EngineVersion)
	inspect.Labels(w, "Engine Labels:", " - ", d.Engine.Labels)
	if t := d.TLSInfo; !reflect.DeepEqual(t, swarm.TLSInfo{}) {
		code := base64.StdEncoding.EncodeToString
		fmt.Fprintf(w, "TLS Info:\n TrustRoot:\n%s\n Issuer Subject:\t%s\n Issuer Public Key:\t%s\n", t.TrustRoot, code(t.CertIssuerSubject), code(t.CertIssuerPublicKey))
	}
}
