package server

import (
	"net/url"

	"github.com/distribution/distribution/v3/configuration"
)

// login takes user and password, which may stand in the URL, out of it.
func (m *mirror) login(p *configuration.Proxy) error {
	u, err := url.Parse(m.url)
	if err != nil {
		return invalid("registry mirror: %s", err)
	}
	if u.User != nil {
		p.Username = u.User.Username()
		p.Password, _ = u.User.Password()
		u.User = nil
	}
	p.RemoteURL = u.String()
	return nil
}
