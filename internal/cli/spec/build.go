package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// Build makes the request for image and the command and arguments behind it.
// f is the parsed flag set: some flags mean something else when given empty
// than when not given.
func (o *Options) Build(f *pflag.FlagSet, image string, command []string) (*Request, error) {
	if o.swappiness < -1 || o.swappiness > 100 {
		return nil, fmt.Errorf("invalid value: %d. Valid memory swappiness range is 0-100", o.swappiness)
	}
	cfg, err := o.config(f, image, command)
	if err != nil {
		return nil, err
	}
	host, err := o.hostConfig(f, cfg)
	if err != nil {
		return nil, err
	}
	endpoints, err := o.endpoints()
	if err != nil {
		return nil, err
	}
	req := &Request{
		Config:     cfg,
		HostConfig: host,
		Network:    &network.NetworkingConfig{EndpointsConfig: endpoints},
	}
	if ep := endpoints[host.NetworkMode.NetworkName()]; ep != nil {
		req.MAC = ep.MacAddress.String()
	}
	return req, nil
}

func (o *Options) config(f *pflag.FlagSet, image string, command []string) (*container.Config, error) {
	exposed, _, err := o.ports()
	if err != nil {
		return nil, err
	}
	env, err := readKeyValues(o.envFile.Values, lastOfEach(o.env.Values), os.LookupEnv)
	if err != nil {
		return nil, err
	}
	labels, err := readKeyValues(o.labelFiles.Values, o.labels.Values, nil)
	if err != nil {
		return nil, err
	}
	health, err := o.health()
	if err != nil {
		return nil, err
	}
	cfg := &container.Config{
		Hostname:     o.hostname,
		Domainname:   o.domainname,
		User:         o.user,
		AttachStdin:  o.attach.has("stdin") || o.stdin,
		AttachStdout: o.attach.has("stdout") || !o.AttachGiven(),
		AttachStderr: o.attach.has("stderr") || !o.AttachGiven(),
		ExposedPorts: exposed,
		Tty:          o.tty,
		OpenStdin:    o.stdin,
		Env:          env,
		Healthcheck:  health,
		Image:        image,
		WorkingDir:   o.workdir,
		Labels:       toMap(labels),
		StopSignal:   o.stopSignal,
	}
	cfg.StdinOnce = cfg.OpenStdin && cfg.AttachStdin
	if len(command) > 0 {
		cfg.Cmd = command
	}
	if f.Changed("entrypoint") {
		cfg.Entrypoint = []string{o.entrypoint}
	}
	if f.Changed("stop-timeout") {
		cfg.StopTimeout = &o.stopTimeout
	}
	return cfg, nil
}

// hostConfig fills the host's part, and Config.Volumes with the anonymous
// volumes among -v.
func (o *Options) hostConfig(f *pflag.FlagSet, cfg *container.Config) (*container.HostConfig, error) {
	_, published, err := o.ports()
	if err != nil {
		return nil, err
	}
	restart, err := restartPolicy(o.restart)
	if err != nil {
		return nil, err
	}
	h := &container.HostConfig{
		ContainerIDFile: o.cidFile,
		OomScoreAdj:     o.oomScoreAdj,
		AutoRemove:      o.autoRemove,
		Privileged:      o.privileged,
		PortBindings:    published,
		Links:           o.links.Values,
		PublishAllPorts: o.publishAll,
		DNSSearch:       o.dnsSearch.orEmpty(),
		DNSOptions:      o.dnsOptions.orEmpty(),
		ExtraHosts:      o.extraHosts.Values,
		VolumesFrom:     o.volumesFrom.Values,
		IpcMode:         container.IpcMode(o.ipc),
		NetworkMode:     o.networks.mode(),
		CapAdd:          o.capAdd.Values,
		CapDrop:         o.capDrop.Values,
		GroupAdd:        o.groupAdd.Values,
		RestartPolicy:   restart,
		ReadonlyRootfs:  o.readOnly,
		LogConfig:       container.LogConfig{Type: o.logDriver, Config: toMap(o.logOpts.Values)},
		VolumeDriver:    o.volumeDriver,
		Isolation:       container.Isolation(o.isolation),
		ShmSize:         o.shmSize.bytes,
		Tmpfs:           map[string]string{},
		Sysctls:         o.sysctls.orEmpty(),
		Runtime:         o.runtime,
		Mounts:          o.mounts,
		Annotations:     o.annotations.orEmpty(),
	}
	if o.logDriver == "none" && len(o.logOpts.Values) > 0 {
		return nil, errors.New("invalid logging opts for driver none")
	}
	for _, t := range o.tmpfs.Values {
		k, v, _ := strings.Cut(t, ":")
		h.Tmpfs[k] = v
	}
	if f.Changed("init") {
		h.Init = &o.init
	}
	for _, step := range []func() error{
		func() error { return o.namespaces(h) },
		func() error { return o.volumesOf(cfg, h) },
		func() error { return o.resolvers(h) },
		func() error { return o.security(h) },
		func() error { return o.storage(h) },
		func() error { return o.resources(&h.Resources) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if o.autoRemove && !h.RestartPolicy.IsNone() {
		return nil, errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	return h, nil
}

func (o *Options) namespaces(h *container.HostConfig) error {
	h.PidMode = container.PidMode(o.pid)
	h.UTSMode = container.UTSMode(o.uts)
	h.UsernsMode = container.UsernsMode(o.userns)
	h.CgroupnsMode = container.CgroupnsMode(o.cgroupns)
	switch {
	case !h.PidMode.Valid():
		return errors.New("--pid: invalid PID mode")
	case !h.UTSMode.Valid():
		return errors.New("--uts: invalid UTS mode")
	case !h.UsernsMode.Valid():
		return errors.New("--userns: invalid USER mode")
	case !h.CgroupnsMode.Valid():
		return errors.New("--cgroupns: invalid CGROUP mode")
	}
	return nil
}

func (o *Options) volumesOf(cfg *container.Config, h *container.HostConfig) error {
	cfg.Volumes = map[string]struct{}{}
	for _, s := range o.volumes.Values {
		bind, target, err := volume(s)
		if err != nil {
			return err
		}
		switch {
		case bind == "":
			cfg.Volumes[target] = struct{}{}
		case !slices.Contains(h.Binds, bind):
			h.Binds = append(h.Binds, bind)
		}
	}
	return nil
}

func (o *Options) resolvers(h *container.HostConfig) error {
	h.DNS = []netip.Addr{}
	for _, s := range o.dns.Values {
		ip, err := addr(s, "DNS server")
		if err != nil {
			return err
		}
		h.DNS = append(h.DNS, ip)
	}
	return nil
}

// security reads a seccomp profile from the file it names, because the engine
// may be on another host, and takes out systempaths=unconfined, which only
// means two empty lists.
func (o *Options) security(h *container.HostConfig) error {
	for _, s := range o.securityOpt.Values {
		if s == "systempaths=unconfined" {
			h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
			continue
		}
		k, v, ok := strings.Cut(s, "=")
		if !ok && k != "no-new-privileges" {
			k, v, ok = strings.Cut(s, ":")
		}
		if (!ok || v == "") && k != "no-new-privileges" {
			return fmt.Errorf("Invalid --security-opt: %q", s) //nolint:staticcheck // Docker's words.
		}
		if k == "seccomp" && v != "builtin" && v != "unconfined" {
			profile, err := os.ReadFile(v)
			if err != nil {
				return fmt.Errorf("opening seccomp profile (%s) failed: %w", v, err)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, profile); err != nil {
				return fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", v, err)
			}
			s = "seccomp=" + b.String()
		}
		h.SecurityOpt = append(h.SecurityOpt, s)
	}
	return nil
}

func (o *Options) storage(h *container.HostConfig) error {
	h.StorageOpt = map[string]string{}
	for _, s := range o.storageOpt.Values {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("invalid storage option")
		}
		h.StorageOpt[k] = v
	}
	return nil
}

func (o *Options) resources(r *container.Resources) error {
	devices, requests, err := o.deviceMappings()
	if err != nil {
		return err
	}
	*r = container.Resources{
		CgroupParent:         o.cgroupParent,
		Memory:               o.memory.bytes,
		MemoryReservation:    o.memoryReservation.bytes,
		MemorySwap:           o.memorySwap.bytes,
		MemorySwappiness:     &o.swappiness,
		OomKillDisable:       &o.oomKillDisable,
		NanoCPUs:             int64(o.cpus),
		CPUCount:             o.cpuCount,
		CPUPercent:           o.cpuPercent,
		CPUShares:            o.cpuShares,
		CPUPeriod:            o.cpuPeriod,
		CPUQuota:             o.cpuQuota,
		CPURealtimePeriod:    o.cpuRTPeriod,
		CPURealtimeRuntime:   o.cpuRTRuntime,
		CpusetCpus:           o.cpusetCPUs,
		CpusetMems:           o.cpusetMems,
		PidsLimit:            &o.pidsLimit,
		BlkioWeight:          o.blkioWeight,
		BlkioWeightDevice:    o.blkioWeights,
		BlkioDeviceReadBps:   o.readBps.values,
		BlkioDeviceWriteBps:  o.writeBps.values,
		BlkioDeviceReadIOps:  o.readIOps.values,
		BlkioDeviceWriteIOps: o.writeIOps.values,
		IOMaximumIOps:        o.ioMaxIOps,
		IOMaximumBandwidth:   uint64(o.ioMaxBandwidth.bytes),
		Ulimits:              o.ulimits.list(),
		DeviceCgroupRules:    o.deviceRules.Values,
		Devices:              devices,
		DeviceRequests:       requests,
	}
	return nil
}

func (o *Options) deviceMappings() ([]container.DeviceMapping, []container.DeviceRequest, error) {
	out := []container.DeviceMapping{}
	var qualified []string
	for _, s := range o.devices.Values {
		if qualifiedDevice(s) {
			qualified = append(qualified, s)
			continue
		}
		clean, err := checkDevicePath(s)
		if err != nil {
			return nil, nil, err
		}
		p := strings.Split(clean, ":")
		d := container.DeviceMapping{PathOnHost: p[0], PathInContainer: p[0], CgroupPermissions: "rwm"}
		switch {
		case len(p) == 3:
			d.PathInContainer, d.CgroupPermissions = p[1], p[2]
		case len(p) == 2 && deviceMode(p[1]):
			d.CgroupPermissions = p[1]
		case len(p) == 2:
			d.PathInContainer = p[1]
		}
		out = append(out, d)
	}
	requests := []container.DeviceRequest(o.gpus)
	if len(qualified) > 0 {
		requests = append(requests, container.DeviceRequest{Driver: "cdi", DeviceIDs: qualified})
	}
	return out, requests, nil
}

func (o *Options) health() (*container.HealthConfig, error) {
	given := o.healthCmd != "" || o.healthInterval != 0 || o.healthTimeout != 0 || o.healthStartPeriod != 0 ||
		o.healthRetries != 0 || o.healthStartInterval != 0
	if o.noHealthcheck {
		if given {
			return nil, errors.New("--no-healthcheck conflicts with --health-* options")
		}
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	}
	if !given {
		return nil, nil
	}
	for _, c := range []struct {
		name     string
		negative bool
	}{
		{"interval", o.healthInterval < 0},
		{"timeout", o.healthTimeout < 0},
		{"retries", o.healthRetries < 0},
		{"start-period", o.healthStartPeriod < 0},
		{"start-interval", o.healthStartInterval < 0},
	} {
		if c.negative {
			return nil, fmt.Errorf("--health-%s cannot be negative", c.name)
		}
	}
	h := &container.HealthConfig{
		Interval:      o.healthInterval,
		Timeout:       o.healthTimeout,
		StartPeriod:   o.healthStartPeriod,
		StartInterval: o.healthStartInterval,
		Retries:       o.healthRetries,
	}
	if o.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	return h, nil
}

func restartPolicy(s string) (container.RestartPolicy, error) {
	name, count, ok := strings.Cut(s, ":")
	if ok && name == "" {
		return container.RestartPolicy{}, errors.New("invalid restart policy format: no policy provided before colon")
	}
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	if count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return container.RestartPolicy{}, errors.New("invalid restart policy format: maximum retry count must be an integer")
		}
		p.MaximumRetryCount = n
	}
	return p, nil
}

func sortedKeys(m map[string]string) []string {
	return slices.Sorted(maps.Keys(m))
}
