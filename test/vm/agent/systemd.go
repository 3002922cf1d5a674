package main

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// withSystemd, on the kernel's command line, asks for systemd.
const withSystemd = "escale.init=systemd"

// units are all that systemd is to start: the commands' service, and what brings in the bus
// when somebody asks for that.
var units = map[string]string{
	"agent.target": "[Unit]\nDefaultDependencies=no\nRequires=agent.service\n",
	"agent.service": `[Unit]
DefaultDependencies=no
FailureAction=poweroff-force
[Service]
ExecStart=/run/agent
Environment=` + path + ` HOME=/root TERM=linux LC_ALL=C.UTF-8
StandardOutput=null
StandardError=null
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
`,
}

// becomeSystemd ends as systemd, the first process. What we are is below the root that was
// left, so a copy of it is the service.
func becomeSystemd() error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	f, err := os.OpenFile("/run/agent", os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, self)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	dir := "/run/systemd/system"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return unix.Exec("/lib/systemd/systemd", []string{"systemd", "--unit=agent.target"}, []string{path, "TERM=linux"})
}
