package container

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"escale.dev/escale/internal/network"
	"github.com/moby/moby/api/types/container"
)

// maxHosts is the size in bytes from which on a container's /etc/hosts is left
// alone: the container writes it, too, and the engine reads it whole.
const maxHosts = 1 << 20

// hostLines are the lines of /etc/hosts by which a container knows itself at an
// endpoint.
func hostLines(c *container.Config, ep *network.Endpoint) (lines []string) {
	names := c.Hostname
	if c.Domainname != "" {
		names += "." + c.Domainname
	}
	if short, _, dotted := strings.Cut(names, "."); dotted {
		names += " " + short
	}
	for _, ip := range []string{ep.IP, ep.IP6} {
		if ip != "" {
			lines = append(lines, ip+"\t"+names+"\n")
		}
	}
	return lines
}

// withLines puts lines at the end.
func withLines(lines []string) func([]string) []string {
	return func(all []string) []string {
		if n := len(all); n > 0 && !strings.HasSuffix(all[n-1], "\n") {
			all[n-1] += "\n"
		}
		return append(all, lines...)
	}
}

// withoutLines takes each of lines away once. The last that reads so is the
// engine's: those of --add-host come before.
func withoutLines(lines []string) func([]string) []string {
	return func(all []string) []string {
		for _, line := range lines {
			for i := len(all) - 1; i >= 0; i-- {
				if strings.TrimSuffix(all[i], "\n") == strings.TrimSuffix(line, "\n") {
					all = slices.Delete(all, i, i+1)
					break
				}
			}
		}
		return all
	}
}

// editHosts changes the lines of a container's /etc/hosts, which a running one sees
// at once. The file is written in place, as containers have it mounted. One that the
// engine cannot change is told of in the log: nothing else depends on it. Called with
// e.mu held, so that two changes come one after the other.
func (m *core) editHosts(id ID, edit func(lines []string) []string) {
	err := editLines(m.hostFilesOf(id).hosts, edit)
	if err != nil && !os.IsNotExist(err) { // it was never started
		m.log.Warn("changing /etc/hosts", "container", id.Short(), "error", err)
	}
}

func editLines(path string, edit func(lines []string) []string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHosts+1))
	if err != nil {
		return err
	}
	if len(text) > maxHosts {
		return fmt.Errorf("%s is larger than %d bytes and is left as it is", path, maxHosts)
	}
	now := strings.Join(edit(slices.Collect(strings.Lines(string(text)))), "")
	at, write := patch(string(text), now)
	if write == "" {
		return nil
	}
	if _, err := f.WriteAt([]byte(write), int64(at)); err != nil {
		return err
	}
	return f.Truncate(int64(len(now)))
}

// patch is what to write where, so that old reads as now. What becomes shorter ends in
// empty lines until it is cut off: whoever reads before that, or after an engine that
// was killed, finds no end of an old line.
func patch(old, now string) (at int, write string) {
	for at < len(old) && at < len(now) && old[at] == now[at] {
		at++
	}
	return at, now[at:] + strings.Repeat("\n", max(0, len(old)-len(now)))
}
