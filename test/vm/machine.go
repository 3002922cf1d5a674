// Package vm boots a virtual machine with Debian's kernel: pure version 2 of
// cgroups, AppArmor, and a disk whose power can be cut. The engine's own tests
// are run in it, and an engine under load loses its machine at any instant.
//
// scripts/vm.sh makes what is booted; `make test-vm` calls it, and `make kill`.
// There is no KVM here: the processor is emulated, and some 10 to 20 times
// slower than the host's.
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Ports of the machine: the agent's, and the one an engine may listen on.
const (
	agentPort  = 7
	enginePort = 2375
)

// Options say what is booted.
type Options struct {
	Dir     string // where scripts/vm.sh put its work
	Data    string // an image that becomes the disk /data; it keeps what is written. Empty: none
	Console string // file that gets what the kernel says
	Systemd bool   // the first process is systemd
}

// Machine is one that runs. Its methods may be called by several goroutines.
type Machine struct {
	cmd    *exec.Cmd
	agent  string
	Engine string // where port 2375 of the machine answers, "tcp://127.0.0.1:…"
	opts   Options

	once   sync.Once
	exited chan struct{}
}

// Boot starts a machine and waits until its agent answers.
func Boot(ctx context.Context, o Options) (*Machine, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(o.Dir, name) }
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2", "-no-reboot", "-nodefaults",
		"-display", "none", "-monitor", "none", "-serial", "file:" + o.Console,
		"-kernel", file("vmlinuz"), "-initrd", file("initramfs.img"),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off lsm=landlock,lockdown,yama,apparmor,bpf",
		// The root's changes are thrown away at the end.
		"-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file=" + file("root.img"),
		"-drive", "if=virtio,format=raw,readonly=on,file=" + file("work.img"),
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=tcp:127.0.0.1:%d-:%d,hostfwd=tcp:127.0.0.1:%d-:%d", ports[0], agentPort, ports[1], enginePort),
		"-device", "virtio-net-pci,netdev=n,romfile=",
	}
	if o.Data != "" {
		// The disk has a write-back cache: what the guest flushed is in the file when
		// the power goes, what it only wrote may be, what it did not write is not.
		args = append(args, "-drive", "if=virtio,format=raw,cache=writeback,file="+o.Data)
	}
	if o.Systemd {
		args[slices.Index(args, "-append")+1] += " escale.init=systemd"
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	// It ends with the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m := &Machine{
		cmd: cmd, agent: fmt.Sprintf("127.0.0.1:%d", ports[0]), Engine: fmt.Sprintf("tcp://127.0.0.1:%d", ports[1]),
		opts: o, exited: make(chan struct{}),
	}
	go func() { _ = cmd.Wait(); close(m.exited) }()
	for {
		// What was sent before the machine listened is not answered for long.
		try, cancel := context.WithTimeout(ctx, time.Second)
		code, err := m.Run(try, io.Discard, Command{Argv: []string{"true"}})
		cancel()
		if err == nil && code == 0 {
			return m, nil
		}
		select {
		case <-m.exited:
			return nil, fmt.Errorf("qemu ended: %s; the kernel said last: %s", said.String(), m.Tail(2000))
		case <-ctx.Done():
			m.Kill()
			return nil, fmt.Errorf("the machine does not answer: %w; it said last: %s", ctx.Err(), m.Tail(2000))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// freePorts finds ports of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Kill ends the machine as a power cut does, and waits until it has ended. Idempotent.
func (m *Machine) Kill() {
	m.once.Do(func() { _ = m.cmd.Process.Kill() })
	<-m.exited
}

// Tail is the end of what the kernel said on the console.
func (m *Machine) Tail(n int) string {
	b, err := os.ReadFile(m.opts.Console)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// Command is what the agent is asked to run.
type Command struct {
	Argv []string
	Dir  string   // empty: /
	Env  []string // "KEY=value", beside those of the agent
}

// Run runs a command in the machine. What it prints goes to w as it comes. The
// error tells that the machine did not answer to the end; the code is the command's.
// When ctx ends, the command is killed.
func (m *Machine) Run(ctx context.Context, w io.Writer, c Command) (code int, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+m.agent+"/run", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("agent: %s", res.Status)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return 0, err
	}
	if code, err = strconv.Atoi(res.Trailer.Get("Exit")); err != nil {
		return 0, errors.New("agent: no exit code")
	}
	return code, nil
}

// Sh runs a line of shell and returns what it printed; any exit code but 0 is an error.
func (m *Machine) Sh(ctx context.Context, line string) (string, error) {
	var out bytes.Buffer
	code, err := m.Run(ctx, &out, Command{Argv: []string{"sh", "-c", line}})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", line, code, out.String())
	}
	return strings.TrimSpace(out.String()), err
}

// Agent is where the machine takes commands, "127.0.0.1:…".
func (m *Machine) Agent() string { return m.agent }
