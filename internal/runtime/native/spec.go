package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/inside"
)

// readSpec reads a bundle's config.json and makes its root path absolute.
func readSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("JSON specification file %s not found", filepath.Join(bundle, "config.json"))
	} else if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	if err := codec.ReadSpec(b, s); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	if err := validate(s); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(s.Root.Path) {
		s.Root.Path = filepath.Join(bundle, s.Root.Path)
	}
	return s, nil
}

// validate refuses what could not be carried out, or only in part. Words are runc's
// where it has them.
func validate(s *specs.Spec) error {
	if err := validateProcess(s.Process); err != nil {
		return err
	}
	switch {
	case s.Root == nil || s.Root.Path == "":
		return errors.New("root property must not be empty")
	case s.Linux == nil:
		return errors.New("linux property must not be empty")
	}
	flags, err := namespaceFlags(s.Linux.Namespaces)
	if err != nil {
		return err
	}
	l := s.Linux
	switch {
	case s.Hostname != "" && flags&unix.CLONE_NEWUTS == 0:
		return errors.New("unable to set hostname without a private UTS namespace")
	case s.Domainname != "" && flags&unix.CLONE_NEWUTS == 0:
		return errors.New("unable to set domainname without a private UTS namespace")
	case flags&unix.CLONE_NEWNS == 0 && (len(l.MaskedPaths) > 0 || len(l.ReadonlyPaths) > 0):
		return errors.New("unable to restrict sys entries without a private MNT namespace")
	case flags&unix.CLONE_NEWUSER == 0 && (len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0):
		return errors.New("user namespace mappings specified, but user namespace isn't enabled in the config")
	case len(l.TimeOffsets) > 0 && flags&unix.CLONE_NEWTIME == 0:
		return errors.New("time namespace offsets specified, but time namespace isn't enabled in the config")
	case len(l.TimeOffsets) > 0 && joined(l.Namespaces, specs.TimeNamespace):
		return errors.New("time namespace offsets specified, but time namespace is another's")
	case l.IntelRdt != nil:
		return errors.New("intelRdt: not supported")
	case len(l.NetDevices) > 0:
		return errors.New("netDevices: not supported")
	case l.Personality != nil && len(l.Personality.Flags) > 0:
		return fmt.Errorf("personality flag %q: not supported", l.Personality.Flags[0])
	case l.MountLabel != "" && !exists("/sys/fs/selinux/enforce"):
		return errors.New("selinux mount label is specified in config, but selinux is disabled or not supported")
	case s.Process.SelinuxLabel != "" && !exists("/sys/fs/selinux/enforce"):
		return errors.New("selinux label is specified in config, but selinux is disabled or not supported")
	case s.Process.ApparmorProfile != "" && s.Process.ApparmorProfile != "unconfined" && !exists("/sys/module/apparmor"):
		return errors.New("apparmor profile is specified in config, but apparmor is disabled or not supported")
	}
	if err := validateHooks(s.Hooks); err != nil {
		return err
	}
	return validateSysctl(l.Sysctl, separate(l.Namespaces, flags))
}

func validateProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("process property must not be empty")
	case len(p.Args) == 0:
		return errors.New("args must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return errors.New("Cwd must be an absolute path")
	case strings.Contains(strings.Join(p.Args, "")+strings.Join(p.Env, "")+p.Cwd, "\x00"):
		return errors.New("process: a NUL in it")
	}
	seen := map[string]bool{}
	for _, l := range p.Rlimits {
		if seen[l.Type] {
			return fmt.Errorf("rlimit %s: given twice", l.Type)
		}
		seen[l.Type] = true
		if _, ok := inside.Resource(l.Type); !ok {
			return fmt.Errorf("rlimit %q: not known", l.Type)
		}
	}
	return validateScheduling(p)
}

// validateHooks refuses what config.md ("POSIX-platform Hooks") rules out.
func validateHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 old bundles have it, and runc runs it
	for _, hook := range slices.Concat(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop) {
		if !filepath.IsAbs(hook.Path) {
			return fmt.Errorf("hook %q: path must be absolute", hook.Path)
		}
		if hook.Timeout != nil && *hook.Timeout <= 0 {
			return fmt.Errorf("hook %q: timeout must be greater than zero", hook.Path)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// flagOf are the kernel's numbers of namespaces by the specification's names.
var flagOf = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER, specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// namespaceFlags are the namespaces of a list, new and joined.
func namespaceFlags(list []specs.LinuxNamespace) (int, error) {
	flags := 0
	for _, n := range list {
		f, ok := flagOf[n.Type]
		if !ok {
			return 0, fmt.Errorf("namespace %q does not exist", n.Type)
		}
		if flags&f != 0 {
			return 0, fmt.Errorf("malformed spec file: duplicated ns %q", n.Type)
		}
		flags |= f
	}
	return flags, nil
}

// joined says whether a list has a namespace that is there already.
func joined(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(list, func(n specs.LinuxNamespace) bool { return n.Type == kind && n.Path != "" })
}

// ipcSysctls are those of an IPC namespace (namespaces(7)).
var ipcSysctls = map[string]bool{"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true, "kernel.shmall": true,
	"kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true}

// validateSysctl refuses parameters that are the whole machine's. flags are the
// namespaces that are not ours.
func validateSysctl(sysctls map[string]string, flags int) error {
	for given := range sysctls {
		key := given
		if i := strings.IndexAny(given, "./"); i >= 0 && given[i] == '/' {
			key = strings.NewReplacer("/", ".", ".", "/").Replace(given)
		}
		switch {
		case ipcSysctls[key], strings.HasPrefix(key, "fs.mqueue."):
			if flags&unix.CLONE_NEWIPC == 0 {
				return fmt.Errorf("sysctl %q is not allowed in the hosts ipc namespace", given)
			}
		case strings.HasPrefix(key, "net."):
			if flags&unix.CLONE_NEWNET == 0 {
				return fmt.Errorf("sysctl %q not allowed in host network namespace", given)
			}
		case key == "kernel.hostname" && flags&unix.CLONE_NEWUTS != 0:
			return fmt.Errorf("sysctl %q is not allowed as it conflicts with the OCI %q field", given, "hostname")
		case key == "kernel.domainname" && flags&unix.CLONE_NEWUTS != 0:
		case strings.HasPrefix(key, "user."):
			if flags&unix.CLONE_NEWUSER == 0 {
				return fmt.Errorf("setting ucounts without a user namespace not allowed: %v", given)
			}
		default:
			return fmt.Errorf("sysctl %q is not in a separate kernel namespace", given)
		}
	}
	return nil
}

// separate are the namespaces of a list without those that are joined and turn out
// to be the ones that we are in ourselves.
func separate(list []specs.LinuxNamespace, flags int) int {
	for _, n := range list {
		if n.Path == "" {
			continue
		}
		file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.MountNamespace: "mnt"}[n.Type]
		if file == "" {
			file = string(n.Type)
		}
		var ours, theirs unix.Stat_t
		if unix.Stat("/proc/self/ns/"+file, &ours) == nil && unix.Stat(n.Path, &theirs) == nil && ours.Dev == theirs.Dev && ours.Ino == theirs.Ino {
			flags &^= flagOf[n.Type]
		}
	}
	return flags
}

// capabilities by name (linux/capability.h), in their order.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
	NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD
	LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// capSet turns names into bits. Those that nobody knows are left out, as runc does
// with a warning.
func capSet(names []string) (set uint64) {
	for _, n := range names {
		if c, ok := strings.CutPrefix(n, "CAP_"); ok {
			if bit := slices.Index(capabilities, c); bit >= 0 {
				set |= 1 << bit
			}
		}
	}
	return set
}
