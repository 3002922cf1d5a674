package container

import "strings"

// Link is what --link asks for: another container under a name of one's own.
type Link struct {
	Ref   string // id or name of the other; the id since its creation
	Alias string
}

// Links are those of a record.
func Links(rec *Record) []Link {
	if len(rec.HostConfig.Links) == 0 {
		return nil
	}
	list := make([]Link, 0, len(rec.HostConfig.Links))
	for _, l := range rec.HostConfig.Links {
		ref, alias := cutLink(l)
		list = append(list, Link{Ref: ref, Alias: alias})
	}
	return list
}

// To tells whether the link leads to a container.
func (l Link) To(rec *Record) bool { return l.Ref == string(rec.ID) || l.Ref == rec.Name }

// checkLinks refuses links that cannot be, in Docker's words, and writes down
// whom they mean, whatever those are called later.
func (m creator) checkLinks(rec *Record) error {
	h := rec.HostConfig
	if len(h.Links) == 0 {
		return nil
	}
	if h.NetworkMode.IsHost() {
		return kindf(errInvalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	links := make([]string, 0, len(h.Links))
	for _, l := range h.Links {
		if l == "" {
			return kindf(errInvalid, "empty string specified for links")
		}
		if strings.Count(l, ":") > 1 {
			return kindf(errInvalid, "bad format for links: %s", l)
		}
		ref, alias := cutLink(l)
		other, err := m.store.find(ref)
		if err != nil {
			return kindf(errInvalid, "could not get container for %s: %s", ref, err)
		}
		if other.view().HostConfig.NetworkMode.IsHost() {
			return kindf(errInvalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		links = append(links, string(other.id)+":"+alias)
	}
	h.Links = links
	return nil
}

// byLink finds what "container/alias" means. Called without the store's lock.
func (s *store) byLink(ref string) (*entry, error) {
	owner, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		return nil, errNoSuch(ref)
	}
	e, err := s.findPlain(owner)
	if err != nil {
		return nil, errNoSuch(ref)
	}
	v := e.view()
	for _, l := range Links(&v.Record) {
		if l.Alias != alias {
			continue
		}
		if other, err := s.findPlain(l.Ref); err == nil {
			return other, nil
		}
	}
	return nil, errNoSuch(ref)
}
