// Package plugin is networks and addresses by programs of other makers, by Docker's
// protocols for remote network drivers and remote IPAM drivers
// (https://github.com/moby/moby/blob/master/libnetwork/docs/remote.md, ipam.md).
//
// A plugin is told the beginning and the end of networks, endpoints, pools and
// addresses, and keeps them itself. So that it is told every end, a note is on the disk
// before it is told a beginning, and as long as there is something to end. A note that
// belongs to no network and no endpoint that lives is a debt: the plugin is told the
// end as soon as it can be reached, also by a later engine.
package plugin
