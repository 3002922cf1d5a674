package engine

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
)

// checkOrigin refuses what a page in a browser asks of an engine that listens where browsers
// come: changes, unless the page is of the engine's own address, and everything that a page asks
// of an address without TLS by a name, since the page's owner may have made that name lead here.
// Programs send none of these headers.
func checkOrigin(r *http.Request) error {
	origin := r.Header.Get("Origin")
	if origin == "" && r.Header.Get("Sec-Fetch-Site") == "" {
		return nil
	}
	var pages http.CrossOriginProtection
	if err := pages.Check(r); err != nil {
		return &kindError{kind: errdefs.ErrPermissionDenied, msg: "a page of another origin may not change anything here: " + err.Error()}
	}
	if _, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); tcp && r.TLS == nil && !isAddress(r.Host) {
		return &kindError{kind: errdefs.ErrPermissionDenied, msg: "a page may not speak to the engine by the name " + r.Host + ": without TLS nobody knows whose it is"}
	}
	return nil
}

// isAddress tells whether a Host header has an IP address, or the name that leads nowhere else.
func isAddress(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}
