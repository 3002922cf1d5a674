package e2e

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/client"
	"escale.dev/escale/test/internal/harness"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
)

// TestGoClient drives an engine through the Go client: a container's whole
// life, an exec, the events of it.
func TestGoClient(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	c, err := client.New(client.Options{Host: e.Host()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ping, err := c.Ping(ctx, moby.PingOptions{NegotiateAPIVersion: true})
	if err != nil || ping.OSType != "linux" {
		t.Fatalf("ping: %+v, %v", ping, err)
	}
	since := time.Now()
	made, err := c.ContainerCreate(ctx, moby.ContainerCreateOptions{Name: "gc", Config: &container.Config{
		Image: image, Cmd: []string{"sh", "-c", "cat; echo end >&2; exit 9"}, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	att, err := c.ContainerAttach(ctx, made.ID, moby.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Close()
	wait := c.ContainerWait(ctx, made.ID, moby.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := c.ContainerStart(ctx, made.ID, moby.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(att.Conn, "over the wire\n"); err != nil {
		t.Fatal(err)
	}
	if err := att.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := harness.Demux(att.Reader, &out, &errs); err != nil {
		t.Fatal(err)
	}
	if out.String() != "over the wire\n" || errs.String() != "end\n" {
		t.Errorf("attach gave %q and %q", out.String(), errs.String())
	}
	select {
	case r := <-wait.Result:
		if r.StatusCode != 9 {
			t.Errorf("exit code %d, want 9", r.StatusCode)
		}
	case err := <-wait.Error:
		t.Errorf("wait: %v", err)
	}
	got, err := c.ContainerInspect(ctx, "gc", moby.ContainerInspectOptions{})
	if err != nil || got.Container.State.ExitCode != 9 || got.Container.State.Status != "exited" {
		t.Errorf("inspect: %+v, %v", got.Container.State, err)
	}
	if _, err := c.ContainerRemove(ctx, made.ID, moby.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
	goExec(t, ctx, c)
	goEvents(t, ctx, c, since, made.ID)
	c.Close()
	noLeaks(t, e)
}

func goExec(t *testing.T, ctx context.Context, c *client.Client) {
	t.Helper()
	made, err := c.ContainerCreate(ctx, moby.ContainerCreateOptions{Config: &container.Config{Image: image, Cmd: []string{"sleep", "300"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.ContainerRemove(context.WithoutCancel(ctx), made.ID, moby.ContainerRemoveOptions{Force: true})
	if _, err := c.ContainerStart(ctx, made.ID, moby.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	ex, err := c.ExecCreate(ctx, made.ID, moby.ExecCreateOptions{Cmd: []string{"sh", "-c", "echo $V; exit 4"}, Env: []string{"V=val"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	att, err := c.ExecAttach(ctx, ex.ID, moby.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Close()
	var out bytes.Buffer
	if err := harness.Demux(att.Reader, &out, io.Discard); err != nil || out.String() != "val\n" {
		t.Errorf("exec gave %q, %v", out.String(), err)
	}
	how, err := c.ExecInspect(ctx, ex.ID, moby.ExecInspectOptions{})
	if err != nil || how.Running || how.ExitCode != 4 {
		t.Errorf("exec ended as %+v, %v; want 4", how, err)
	}
}

func goEvents(t *testing.T, ctx context.Context, c *client.Client, since time.Time, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, harness.Patience(10*time.Second))
	defer cancel()
	stream := c.Events(ctx, moby.EventsListOptions{
		Since: since.Add(-time.Second).Format(time.RFC3339Nano), Until: time.Now().Add(time.Second).Format(time.RFC3339Nano),
		Filters: make(moby.Filters).Add("container", id),
	})
	var seen []string
	for {
		select {
		case m := <-stream.Messages:
			seen = append(seen, string(m.Action))
			continue
		case err := <-stream.Err:
			if err != nil && err != io.EOF {
				t.Errorf("events: %v", err)
			}
		}
		break
	}
	if got, want := strings.Join(seen, " "), "create attach start die destroy"; got != want {
		t.Errorf("events %q, want %q", got, want)
	}
}
