package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/ready"
)

// Setup makes the network of a container that is about to start: a namespace, an
// endpoint on each of its networks, and its published ports. On an error all is
// undone. Blocks for some 2 ms. The error's words and kinds are Docker's; one
// about ports has no kind.
func (m *Manager) Setup(ctx context.Context, req Request) (*Sandbox, error) {
	if err := m.spanAll(ctx, req); err != nil {
		return nil, err
	}
	plan, err := m.plan(req)
	if err != nil {
		return nil, err
	}
	defer m.networks.free(plan.networks())
	if err := m.mend(ctx, plan); err != nil {
		return nil, err
	}
	s := &setup{m: m, req: req, plan: plan, box: &Sandbox{ID: req.ContainerID}}
	if err := s.run(ctx); err != nil {
		if undo := s.undo(context.WithoutCancel(ctx)); undo != nil {
			m.log.Error("network of a container that could not start: not all undone", "container", req.ContainerID, "error", undo)
		}
		return nil, err
	}
	m.ingress.rest(ctx, s.box.Endpoints, false) // it may have rested in the life before
	return s.box, nil
}

// setup is one Setup under way.
type setup struct {
	m      *Manager
	req    Request
	plan   plan
	box    *Sandbox
	handle string // name of the namespace's handle
	door   int    // the endpoint that has the published ports; negative: none leads out
}

// namespace is a new one that nothing binds yet, prepared ahead if there is demand.
func (m *Manager) namespace() (*netns.Handle, error) {
	if ns, ok := m.spares.Take(); ok {
		return ns, nil
	}
	return newNamespace()
}

func newNamespace() (*netns.Handle, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	if err := ns.Do(inside.Prepare); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// newSpares keeps one namespace ahead, which takes a millisecond off a start. It is
// nobody's but a descriptor's: an engine that dies leaves none.
func newSpares() *ready.Spares[*netns.Handle] {
	return ready.New(ready.Config[*netns.Handle]{Make: newNamespace, End: func(ns *netns.Handle) { ns.Close() },
		Size: 1, Delay: 20 * time.Millisecond, Rest: 30 * time.Second})
}

// run does the work; what it began is in s for undo.
func (s *setup) run(ctx context.Context) error {
	s.handle = handleName(s.req.ContainerID, newID())
	s.m.use(s.handle)
	s.box.Path = s.m.folder.Path(s.handle)
	ns, err := s.m.namespace()
	if err != nil {
		return fmt.Errorf("container %s: %w", s.req.ContainerID, err)
	}
	defer ns.Close()
	if err := s.m.folder.Bind(ns, s.handle); err != nil {
		return err
	}
	v4, v6 := choose(s.plan.ways())
	late := slices.ContainsFunc(s.plan.parts, func(p part) bool { return foreign(p.net.driver) })
	if late { // who leads out is known when all have been asked
		v4, v6 = -1, -1
	}
	s.door = doorOf(v4, v6)
	links := namer{}
	if err := links.claim(s.plan.parts); err != nil {
		return err
	}
	for i := range s.plan.parts {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := &s.plan.parts[i]
		j := p.join(s.req, links.next(p))
		j.Taken = links
		j.Published, j.Path = (i == s.door || late) && len(s.plan.ports) > 0 || p.net.info.Ingress, s.box.Path
		ep, err := s.m.join(ctx, ns, s.req, p, j, i == v4, i == v6)
		if err != nil {
			return err
		}
		ep.Handle, links[ep.Interface] = s.handle, true
		s.box.Endpoints = append(s.box.Endpoints, ep)
	}
	if late {
		if err := s.leadOut(ctx, ns); err != nil {
			return err
		}
	}
	if len(s.box.Endpoints) == 0 { // something has to tell of the namespace
		s.box.Endpoints = []Endpoint{{EndpointID: newID(), Handle: s.handle}}
	}
	if err := s.publish(ctx); err != nil {
		return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", s.req.Name, s.box.Endpoints[s.door].EndpointID, err)
	}
	if s.m.cfg.Resolver != nil && nameable(s.box.Endpoints) {
		made, err := s.m.serve(ns, s.handle, s.req.ContainerID, nil, s.req.Resolve)
		if err != nil {
			return fmt.Errorf("container %s: %w", s.req.ContainerID, err)
		}
		s.box.Held = append(s.box.Held, made...)
	}
	s.m.settled(s.req.ContainerID, s.box.Endpoints)
	s.m.names.judge(s.req.ContainerID, !s.req.Probed)
	s.m.balanced(s.req.ContainerID, nil, s.box.Endpoints...)
	return nil
}

// doorOf is the endpoint that has the published ports, of those that have the default
// routes; negative for none.
func doorOf(v4, v6 int) int {
	if v4 >= 0 {
		return v4
	}
	return v6
}

// leadOut makes the default routes when plugins have said whether theirs lead out.
func (s *setup) leadOut(ctx context.Context, ns *netns.Handle) error {
	s.door = doorOf(choose(s.m.ways(s.box.Endpoints)))
	v4, v6 := s.m.exits(s.box.Endpoints)
	if err := setExits(ns, v4, v6); err != nil {
		return err
	}
	return s.m.opens(ctx, s.box.Endpoints)
}

// settled notes where a container is.
func (m *base) settled(id string, eps []Endpoint) {
	m.networks.record(id, eps)
	m.names.set(id, eps, m.leadsOut(eps))
	m.rotation.set(id, eps)
}

// leadsOut tells whether one of the networks is not internal.
func (m *base) leadsOut(eps []Endpoint) bool {
	return slices.ContainsFunc(m.ways(eps), func(w way) bool { return !w.internal })
}

// publish gives the endpoint that leads out its ports.
func (s *setup) publish(ctx context.Context) (err error) {
	if s.door < 0 {
		return nil
	}
	if _, ok := s.plan.parts[s.door].net.driver.(Publisher); !ok {
		return nil
	}
	ep := &s.box.Endpoints[s.door]
	if s.box.Held, err = s.m.hold(ep, s.plan.ports, s.req.Exposed, s.req.Balance); err != nil {
		return err
	}
	ep.Resting = ep.Balance != "" && s.req.Probed
	return s.m.publish(ctx, *ep, s.box.Held)
}

// undo takes back what run did, last things first.
func (s *setup) undo(ctx context.Context) error {
	s.m.unserve(s.handle)
	for _, f := range s.box.Held {
		f.Close()
	}
	var errs []error
	for i, ep := range slices.Backward(s.box.Endpoints) {
		if ep.Network == "" {
			continue
		}
		if i == s.door && len(s.box.Held) > 0 {
			errs = append(errs, s.m.unpublish(ctx, ep))
			s.m.ports.Free(ep.mappings())
		}
		errs = append(errs, s.plan.parts[i].net.driver.Leave(ctx, ep))
		s.m.networks.giveBack(ctx, s.plan.parts[i].net, ep)
	}
	errs = append(errs, s.m.drop(s.handle))
	return errors.Join(errs...)
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return hex.EncodeToString(b[:])
}
