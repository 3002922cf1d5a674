package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// composeFile has eight services, of which five wait for another; web says how that one is.
func composeFile(image, web string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "services:\n")
	for i := range 8 {
		// It ends at once when it is told to.
		fmt.Fprintf(&b, "  s%d:\n    image: %s\n    command: [\"sh\", \"-c\", \"trap 'exit 0' TERM; while :; do sleep 3600 & wait; done\"]\n    environment: [\"V=%s\"]\n", i, image, map[bool]string{true: web}[i == 7])
		if i >= 3 {
			fmt.Fprintf(&b, "    depends_on: [s%d]\n", i%3)
		}
	}
	return b.String()
}

// composing measures a project of eight services: up, up when nothing has changed, up
// when one service has, down. Each end has its own program of compose.
func composing(ctx context.Context, b *bench) error {
	programs := map[*end][]string{}
	for i, e := range b.ends {
		programs[e] = strings.Fields(b.compose[i])
		if len(programs[e]) == 0 {
			fmt.Fprintln(os.Stderr, "compose: left out, it needs -compose-a and -compose-b")
			return nil
		}
		if _, err := exec.LookPath(programs[e][0]); err != nil {
			return fmt.Errorf("compose at %s: %w", e.name, err)
		}
	}
	dir, err := os.MkdirTemp("", b.repo()+"-compose-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "compose.yaml")
	do := func(ctx context.Context, e *end, args ...string) error {
		p := programs[e]
		args = append(append(p[1:len(p):len(p)], "-p", b.run+"compose", "-f", file), args...)
		return e.cli(ctx, p[0], args...)
	}
	write := func(web string) error { return os.WriteFile(file, []byte(composeFile(b.image, web)), 0o600) }
	if err := write("1"); err != nil {
		return err
	}
	// detached: what is up goes also when the bench is ended
	defer func() {
		for _, e := range b.ends {
			_ = do(context.WithoutCancel(ctx), e, "down", "-t", "1") // there may be nothing
		}
	}()
	n := max(1, b.n/3)
	step := func(what string, before, do, after func(ctx context.Context, e *end) error) error {
		return b.prepared(ctx, "compose, 8 services, "+what, n, before, do, after)
	}
	up := func(ctx context.Context, e *end) error { return do(ctx, e, "up", "-d") }
	down := func(ctx context.Context, e *end) error { return do(ctx, e, "down", "-t", "1") }
	nothing := func(context.Context, *end) error { return nil }
	if err := step("up", nothing, up, down); err != nil {
		return err
	}
	if err := step("up, nothing to do", up, up, nothing); err != nil {
		return err
	}
	turn := 1
	if err := step("up, one has changed", func(ctx context.Context, e *end) error {
		turn++
		return write(fmt.Sprint(turn))
	}, up, nothing); err != nil {
		return err
	}
	return step("down", up, down, nothing)
}
