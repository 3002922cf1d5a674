package spec

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// What flags of services have in common with those of containers.
type (
	// Mounts is the value of --mount.
	Mounts = mounts
	// Size is a number of bytes with an optional unit.
	Size = size
	// NanoCPUs is a decimal number of CPUs, kept in billionths.
	NanoCPUs = nanoCPUs
	// Ulimits is the value of --ulimit.
	Ulimits = ulimits
	// Networks is the value of --network.
	Networks = networks
)

// List gives the mounts in the order in which they were asked for.
func (ms mounts) List() []mount.Mount { return ms }

// Bytes is the number of bytes.
func (z *size) Bytes() int64 { return z.bytes }

// List gives the limits in the order of names.
func (u *ulimits) List() []*container.Ulimit { return u.list() }

// Attachment is a network as a service may ask for it.
type Attachment struct {
	Target     string // name or ID
	Aliases    []string
	DriverOpts map[string]string
}

// Attachments gives the networks in the order in which they were asked for.
func (n networks) Attachments() []Attachment {
	list := make([]Attachment, len(n))
	for i, a := range n {
		list[i] = Attachment{Target: a.target, Aliases: a.aliases, DriverOpts: a.driverOpts}
	}
	return list
}

// CheckLabel accepts KEY[=VALUE].
func CheckLabel(s string) (string, error) { return checkLabel(s) }

// CheckIP accepts an address, and writes it in its usual form.
func CheckIP(s string) (string, error) { return checkIP(s) }

// CheckDNSSearch accepts a search domain, or a dot for none.
func CheckDNSSearch(s string) (string, error) { return checkDNSSearch(s) }

// CheckHost rewrites NAME=IP, NAME:IP and NAME=[IP] to NAME:IP.
func CheckHost(s string) (string, error) { return checkHost(s) }

// LongForm reports whether a flag's value is a list of KEY=VALUE.
func LongForm(s string) bool { return longForm(s) }

// Publish reads [IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTO]: what of the host
// leads to which ports.
func Publish(s string) (network.PortMap, error) {
	m := network.PortMap{}
	return m, publish(s, network.PortSet{}, m)
}

// PortRange reads N or N-M.
func PortRange(s string) (first, last int, err error) { return portRange(s) }
