package engine

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"escale.dev/escale/internal/container"
	"github.com/containerd/platforms"
	apicontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// createBody is the body of a create with the fields of older versions.
type createBody struct {
	*apicontainer.Config
	HostConfig       *hostConfigBody
	NetworkingConfig *network.NetworkingConfig
	MacAddress       string

	// These may be a single string.
	Cmd, Entrypoint, Shell words
}

// words is a list of strings for which a string may stand.
type words []string

// UnmarshalJSON keeps null and an empty list apart.
func (l *words) UnmarshalJSON(b []byte) error {
	var one string
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		*l = words{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// settle moves what may be a single string to where it belongs.
func (b *createBody) settle() {
	if b.Config == nil {
		if b.Cmd == nil && b.Entrypoint == nil && b.Shell == nil {
			return
		}
		b.Config = &apicontainer.Config{}
	}
	b.Config.Cmd, b.Config.Entrypoint, b.Config.Shell = b.Cmd, b.Entrypoint, b.Shell
}

type hostConfigBody struct {
	apicontainer.HostConfig
	KernelMemory    int64
	KernelMemoryTCP int64
}

func (c containerRoutes) create(w *response, r *request) error {
	var body createBody
	if r.ContentLength == 0 && checkJSON(r) == nil {
		return jsonError(io.EOF)
	}
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	body.settle()
	in, warnings, err := translateCreate(&body, r.version)
	if err != nil {
		return err
	}
	in.Name = r.query.get("name")
	if !r.version.before(41) {
		if in.Platform, err = platformParam(r.query); err != nil {
			return err
		}
	}
	if c.cfg.Keeper != nil {
		if err := c.cfg.Keeper.Creating(in.Config.Labels); err != nil {
			return err
		}
	}
	made, err := c.cfg.Containers.Create(detached(r), in)
	if err != nil {
		return err
	}
	warnings = append(warnings, made.Warnings...)
	return writeJSON(w, http.StatusCreated, apicontainer.CreateResponse{ID: string(made.ID), Warnings: warnings})
}

// platformParam reads "os[/arch[/variant]]", completed and in one spelling.
func platformParam(q params) (string, error) {
	s := q.get("platform")
	if s == "" {
		return "", nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return "", invalidf("invalid platform %q: %s", s, err)
	}
	return platforms.Format(p), nil
}

// translateCreate turns what a client of a version means into what the engine
// knows: fields the version had not yet are not read, fields it had still are
// moved to their new place, its defaults are filled in.
func translateCreate(body *createBody, ver version) (container.Create, []string, error) {
	warnings := []string{}
	if body.Config == nil {
		return container.Create{}, nil, invalidf("config cannot be empty in order to create a container")
	}
	if body.HostConfig == nil {
		body.HostConfig = &hostConfigBody{}
	}
	conf, h := body.Config, &body.HostConfig.HostConfig
	nc := &network.NetworkingConfig{}
	if body.NetworkingConfig != nil {
		nc = body.NetworkingConfig
	}
	for name, es := range nc.EndpointsConfig {
		if es == nil {
			nc.EndpointsConfig[name] = &network.EndpointSettings{}
		}
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil // unlimited
	}
	if ver.before(42) && (body.HostConfig.KernelMemory != 0 || body.HostConfig.KernelMemoryTCP != 0) {
		warnings = append(warnings, "Kernel memory limits are not supported, HostConfig.KernelMemory was ignored.")
	}
	if err := oldConfig(conf, h, nc, ver); err != nil {
		return container.Create{}, nil, err
	}
	if err := oldMounts(h.Mounts, ver); err != nil {
		return container.Create{}, nil, err
	}
	warning, err := moveMAC(body.MacAddress, h, nc, ver)
	if err != nil {
		return container.Create{}, nil, err
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	if warning := emptyBindings(h, ver); warning != "" {
		warnings = append(warnings, warning)
	}
	if h.VolumeDriver != "" && len(h.Mounts) > 0 {
		warnings = append(warnings, "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead")
	}
	return container.Create{Config: conf, HostConfig: h, Networking: nc}, warnings, nil
}

// oldConfig applies the rules of versions to what is no mount.
func oldConfig(conf *apicontainer.Config, h *apicontainer.HostConfig, nc *network.NetworkingConfig, ver version) error {
	if ver.before(25) {
		h.AutoRemove = false // its clients remove the container themselves
	}
	if ver.before(40) && h.IpcMode.IsEmpty() {
		h.IpcMode = apicontainer.IPCModeShareable
	}
	if ver.before(41) && h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = apicontainer.CgroupnsModeHost
	}
	if ver.before(42) {
		h.ConsoleSize = [2]uint{}
	}
	if ver.before(43) {
		h.Annotations = nil
	}
	if ver.before(44) {
		if conf.Healthcheck != nil {
			conf.Healthcheck.StartInterval = 0
		}
		for _, es := range nc.EndpointsConfig {
			es.MacAddress = nil
		}
		if len(nc.EndpointsConfig) > 1 {
			names := sortedKeys(nil, nc.EndpointsConfig)
			return invalidf("Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", "))
		}
	}
	if ver.before(48) {
		for _, es := range nc.EndpointsConfig {
			es.GwPriority = 0
		}
	}
	if ver.before(56) {
		h.Umask = nil
	}
	return nil
}

// oldMounts applies the rules of versions to mounts.
func oldMounts(mounts []mount.Mount, ver version) error {
	for i := range mounts {
		m := &mounts[i]
		if b := m.BindOptions; b != nil {
			if ver.before(40) {
				b.NonRecursive = false
			}
			if ver.before(42) {
				b.CreateMountpoint = false
			}
			if ver.before(44) {
				b.ReadOnlyNonRecursive = false
				if b.ReadOnlyForceRecursive {
					return invalidf("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
				}
			}
		}
		if ver.before(42) {
			// Options of another type were not looked at then.
			if m.Type != mount.TypeBind {
				m.BindOptions = nil
			}
			if m.Type != mount.TypeVolume {
				m.VolumeOptions = nil
			}
			if m.Type != mount.TypeTmpfs {
				m.TmpfsOptions = nil
			}
		}
		if ver.before(44) && m.Type == mount.TypeBind && m.ReadOnly {
			// Read-only went one level deep.
			if m.BindOptions == nil {
				m.BindOptions = &mount.BindOptions{}
			}
			m.BindOptions.ReadOnlyNonRecursive = true
		}
		if v := m.VolumeOptions; v != nil && v.Subpath != "" && ver.before(45) {
			return invalidf("VolumeOptions.Subpath needs API v1.45 or newer")
		}
		if t := m.TmpfsOptions; t != nil && ver.before(46) {
			t.Options = nil
		}
		if m.Type == mount.TypeImage && ver.before(48) {
			return invalidf(`mount type "Image" needs API v1.48 or newer`)
		}
	}
	return nil
}

// moveMAC moves a container-wide MAC address, as clients before 1.44 send it,
// to the endpoint of the container's main network.
func moveMAC(address string, h *apicontainer.HostConfig, nc *network.NetworkingConfig, ver version) (warning string, err error) {
	if address == "" {
		return "", nil
	}
	if !ver.before(52) {
		return "", invalidf("container-wide MAC address no longer supported; use endpoint-specific MAC address instead")
	}
	mac, err := net.ParseMAC(address)
	if err != nil {
		return "", invalidf("invalid MAC address %q: %s", address, err)
	}
	mode := h.NetworkMode
	if mode.IsHost() || mode.IsNone() || mode.IsContainer() {
		return "", invalidf("conflicting options: mac-address and the network mode")
	}
	name := networkName(string(mode))
	if nc.EndpointsConfig == nil {
		nc.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	es := nc.EndpointsConfig[name]
	if es == nil && nc.EndpointsConfig[network.NetworkDefault] != nil {
		es = nc.EndpointsConfig[network.NetworkDefault]
	}
	if es == nil {
		if len(nc.EndpointsConfig) > 0 {
			return "", invalidf("if a container-wide MAC address is specified, HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
		}
		es = &network.EndpointSettings{}
		nc.EndpointsConfig[name] = es
	}
	if len(es.MacAddress) > 0 && es.MacAddress.String() != mac.String() {
		return "", invalidf("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or should be left empty")
	}
	es.MacAddress = network.HardwareAddr(mac)
	if ver.before(44) {
		return "", nil
	}
	return "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.", nil
}

// emptyBindings gives ports with an empty list of bindings what versions before
// 1.53 meant by it, one binding of any host port; now they are left out.
func emptyBindings(h *apicontainer.HostConfig, ver version) (warning string) {
	var empty []string
	for port, bindings := range h.PortBindings {
		if len(bindings) > 0 {
			continue
		}
		empty = append(empty, port.String())
		if ver.before(53) {
			h.PortBindings[port] = []network.PortBinding{{}}
		} else {
			delete(h.PortBindings, port)
		}
	}
	if len(empty) == 0 || ver != v(52) {
		return ""
	}
	slices.Sort(empty)
	return fmt.Sprintf("Following container port(s) have an empty list of port-bindings: %s. Starting with API 1.53, such bindings will be discarded.", strings.Join(empty, ", "))
}
