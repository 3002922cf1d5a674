// Agent is all that runs in the virtual machine of test/vm by itself. As the
// first process it mounts what a distribution's init would (version 2 of
// cgroups alone, as systemd does it), reaps whatever is orphaned, and keeps a
// second process of itself that runs the commands that come over HTTP:
//
//	POST /run {"Argv": ["ls", "/"], "Dir": "/tmp", "Env": ["A=b"]}
//
// answers with what the command prints, as it prints it, and in the trailer
// Exit with its exit code. Where the kernel's command line says so, the first process
// becomes systemd instead, which has the second one as a service. It trusts whoever asks: it is reached from the host
// that runs the machine, and by nobody else.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	listen  = ":7"
	service = "/sys/fs/cgroup/system.slice/test.service"
	path    = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Println("agent:", http.ListenAndServe(listen, http.HandlerFunc(run)))
		os.Exit(1)
	}
	if err := boot(); err != nil {
		fmt.Println("agent: boot:", err)
		powerOff()
	}
	if err := serve(); err != nil {
		fmt.Println("agent:", err)
	}
	powerOff()
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // the first process must not end
}

// boot makes a machine of a kernel.
func boot() error {
	if err := mounts("", []mount{{"proc", "/proc", "proc", 0, ""}, {"sysfs", "/sys", "sysfs", 0, ""}, {"devtmpfs", "/dev", "devtmpfs", 0, ""}}); err != nil {
		return err
	}
	if err := modules("/modules"); err != nil {
		return err
	}
	if err := disks(); err != nil {
		return err
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	systemd := strings.Contains(string(words), withSystemd)
	if err := mounts("", []mount{
		{"securityfs", "/sys/kernel/security", "securityfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=700"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}); err != nil {
		return err
	}
	// systemd shares what it mounts, and that is what engines are used to.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the mounts: %w", err)
	}
	if !systemd { // which does both itself
		if err := mounts("", []mount{{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"}}); err != nil {
			return err
		}
		if err := cgroups(); err != nil {
			return err
		}
	}
	for _, line := range []string{
		"ip link set lo up", "ip link set eth0 up", "ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2",
	} {
		args := strings.Fields(line)
		cmd := exec.Command("/sbin/"+args[0], args[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	if err := unix.Sethostname([]byte("vm")); err != nil || !systemd {
		return err
	}
	return becomeSystemd()
}

type mount struct {
	source, target, fs string
	flags              uintptr
	data               string
}

func mounts(root string, list []mount) error {
	for _, m := range list {
		dir := filepath.Join(root, m.target)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, dir, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// modules loads the modules that the file lists, one path a line, in its
// order: those that lead to the disk and the network. All else is loaded when
// the kernel asks for it, by the modprobe of the disk's Debian.
func modules(list string) error {
	b, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(b)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

// disks makes the first disk the root, the second /escale, and the third, if
// there is one, /data.
func disks() error {
	for range 500 { // the kernel finds them in its own time
		if _, err := os.Stat("/dev/vdb"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := mounts("/new", []mount{{"/dev/vda", "/", "ext4", 0, ""}, {"/dev/vdb", "/escale", "ext4", unix.MS_RDONLY, ""}}); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/vdc"); err == nil {
		if err := mounts("/new", []mount{{"/dev/vdc", "/data", "ext4", 0, ""}}); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, "/new"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", dir, err)
		}
	}
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// cgroups lets services have all controllers, and makes one for what we run:
// an engine is a service, and never in the root of the hierarchy.
func cgroups() error {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	all := "+" + strings.Join(strings.Fields(string(b)), " +")
	if err := os.MkdirAll(service, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/sys/fs/cgroup", filepath.Dir(service)} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(all), 0); err != nil {
			return err
		}
	}
	return nil
}

// serve starts the second process, and reaps until it has ended.
func serve() error {
	dir, err := os.Open(service)
	if err != nil {
		return err
	}
	defer dir.Close()
	self, err := os.Open("/proc/self/exe") // its file is below the root that was left
	if err != nil {
		return err
	}
	defer self.Close()
	child, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", self.Fd()), []string{"agent"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{path, "HOME=/root", "TERM=linux", "LC_ALL=C.UTF-8"}, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("the server: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case pid == child:
			return fmt.Errorf("the server ended: %v", status)
		}
	}
}

// command is what is asked to be run.
type command struct {
	Argv []string
	Dir  string
	Env  []string
}

// run runs a command; it is killed, with its group, when the asker goes away.
func run(w http.ResponseWriter, r *http.Request) {
	var c command
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil || len(c.Argv) == 0 {
		http.Error(w, fmt.Sprintf("no command: %v", err), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "Exit")
	w.WriteHeader(http.StatusOK)
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := &flusher{w: bufio.NewWriterSize(w, 64<<10), http: w}
	cmd.Stdout, cmd.Stderr = out, out
	// What it leaves running may hold its output.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(out, err)
		w.Header().Set("Exit", "127")
		return
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-r.Context().Done():
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		case <-done:
		}
	}()
	err := cmd.Wait()
	close(done)
	code := cmd.ProcessState.ExitCode()
	if err != nil && code == 0 && !errors.Is(err, exec.ErrWaitDelay) {
		fmt.Fprintln(out, err)
		code = 1
	}
	w.Header().Set("Exit", strconv.Itoa(code))
}

// flusher sends what is written at once.
type flusher struct {
	w    *bufio.Writer
	http http.ResponseWriter
}

func (f *flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.w.Flush()
	}
	if err == nil {
		err = http.NewResponseController(f.http).Flush()
	}
	return n, err
}
