package daemon

// fileKeys maps keys of daemon.json to flags where the names differ.
var fileKeys = map[string]string{
	"hosts": "host", "labels": "label", "log-opts": "log-opt", "dns-opts": "dns-opt", "default-ulimits": "default-ulimit",
	"default-address-pools": "default-address-pool", "runtimes": "add-runtime", "insecure-registries": "insecure-registry", "node-generic-resources": "node-generic-resource", "registry-mirrors": "registry-mirror", "bridge": "bridge-name",
	"live-restore":  "stop-containers", // the other way round
	"cdi-spec-dirs": "cdi-spec-dir", "features": "feature", "host-gateway-ips": "host-gateway-ip",
	"exec-opts": "exec-opt",
}

// dockerKeys are keys of Docker's daemon.json that this version has no use for:
// they are named in a warning rather than refused, so that a file written for
// Docker is taken as it is.
var dockerKeys = map[string]bool{
	"allow-direct-routing": true, "allow-nondistributable-artifacts": true, "authorization-plugins": true, "builder": true,
	"cluster-advertise": true, "cluster-store": true, "containerd": true, "containerd-namespace": true, "containerd-plugin-namespace": true,
	"default-gateway": true, "default-gateway-v6": true, "default-network-opts": true,
	"experimental": true, "fixed-cidr": true, "fixed-cidr-v6": true,
	"ip6tables": true, "iptables": true, "ipv6": true,
	"log-format": true, "metrics-addr": true,
	"no-pivot-root": true, "oom-score-adjust": true, "proxies": true,
	"raw-logs": true, "rootless": true, "selinux-enabled": true, "storage-driver": true,
	"storage-opts": true, "swarm-default-advertise-addr": true, "userland-proxy-path": true, "userns-remap": true,
}
