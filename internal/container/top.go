package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	osexec "os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
)

// Top lists a container's processes as the host's ps shows them with psArgs;
// "" is "-ef". Blocks while ps runs.
func (w *watcher) Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error) {
	var none container.TopResponse
	if psArgs == "" {
		psArgs = "-ef"
	}
	if err := checkPSArgs(psArgs); err != nil {
		return none, err
	}
	e, err := w.c.store.find(ref)
	if err != nil {
		return none, err
	}
	v := e.view()
	switch {
	case v.State.Status == Restarting:
		return none, kindf(errConflict, "container %s is restarting, wait until the container is running", e.id)
	case !v.State.Running():
		return none, kindf(errConflict, "container %s is not running", e.id)
	}
	pids, err := w.c.cfg.Processes.Pids(w.c.cgroupPath(&v.Record))
	if err != nil {
		if !e.state().Running() {
			return none, kindf(errConflict, "container %s is not running", e.id)
		}
		return none, fmt.Errorf("container %s: processes: %w", e.id.Short(), err)
	}
	out, err := runPS(ctx, strings.Split(psArgs, " "), pids)
	if err != nil {
		return none, err
	}
	res, err := parsePS(out, pids)
	if err == nil {
		w.c.publish(e, apievents.ActionTop, nil)
	}
	return res, err
}

// renamedPID finds titles that a column was given: with one of them called PID
// the processes of others could be shown as the container's.
var renamedPID = regexp.MustCompile(`\s+(\S*)=\s*(PID\S*)`)

func checkPSArgs(args string) error {
	for _, m := range renamedPID.FindAllStringSubmatch(args, -1) {
		if m[1] != "pid" {
			return kindf(errInvalid, "specifying \"%s=%s\" is not allowed", m[1], m[2])
		}
	}
	return nil
}

// runPS runs ps for these processes; some of its options go with no list of
// processes, so without one a second time.
func runPS(ctx context.Context, args []string, pids []int) ([]byte, error) {
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	if len(pids) > 0 {
		out, err := osexec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q"+strings.Join(list, ","))...).Output()
		if err == nil {
			return out, nil
		}
	}
	out, err := osexec.CommandContext(ctx, "ps", args...).Output()
	var failed *osexec.ExitError
	if errors.As(err, &failed) {
		line, _, _ := bytes.Cut(failed.Stderr, []byte("\n"))
		if len(line) > 0 {
			return nil, fmt.Errorf("ps: %s", line)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	return out, nil
}

// parsePS takes the lines of the given processes from what ps printed. Threads,
// whose number ps shows as "-", belong to the process before them.
func parsePS(out []byte, pids []int) (container.TopResponse, error) {
	lines := strings.Split(string(out), "\n")
	res := container.TopResponse{Titles: strings.FieldsFunc(lines[0], isSpace), Processes: [][]string{}}
	at := slices.Index(res.Titles, "PID")
	if at < 0 {
		return container.TopResponse{}, errors.New("Couldn't find PID field in ps output") //nolint:staticcheck // Docker's words.
	}
	ours := false
	for _, line := range lines[1:] {
		fields := strings.FieldsFunc(line, isSpace)
		if len(fields) == 0 {
			continue
		}
		if len(fields) <= at {
			return container.TopResponse{}, fmt.Errorf("Unexpected line in ps output: %q", line) //nolint:staticcheck // as Docker begins its own.
		}
		if fields[at] != "-" {
			pid, err := strconv.Atoi(fields[at])
			if err != nil {
				return container.TopResponse{}, fmt.Errorf("Unexpected pid '%s': %w", fields[at], err) //nolint:staticcheck // Docker's words.
			}
			ours = slices.Contains(pids, pid)
		}
		if !ours {
			continue
		}
		// The last column may hold spaces.
		if n := len(res.Titles); len(fields) > n {
			fields = append(fields[:n-1:n-1], strings.Join(fields[n-1:], " "))
		}
		res.Processes = append(res.Processes, fields)
	}
	return res, nil
}

// isSpace knows the spaces of ASCII alone: names may hold others.
func isSpace(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }
