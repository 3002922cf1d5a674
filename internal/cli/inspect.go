package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

// object is a kind of thing that can be inspected: where the engine has it and
// what a template sees.
type object struct {
	kind           string
	prefix, suffix string
	value          any
	swarm          bool // only a manager has it
}

// objects lists the kinds in the order in which a bare name is looked for.
func objects() []object {
	return []object{
		{kind: "container", prefix: "/containers/", suffix: "/json", value: container.InspectResponse{}},
		{kind: "image", prefix: "/images/", suffix: "/json", value: image.InspectResponse{}},
		{kind: "network", prefix: "/networks/", value: network.Inspect{}},
		{kind: "volume", prefix: "/volumes/", value: volume.Volume{}},
		{kind: "service", prefix: "/services/", value: swarm.Service{}, swarm: true},
		{kind: "task", prefix: "/tasks/", value: swarm.Task{}, swarm: true},
		{kind: "node", prefix: "/nodes/", value: swarm.Node{}, swarm: true},
		{kind: "plugin", prefix: "/plugins/", suffix: "/json", value: plugin.Plugin{}},
		{kind: "secret", prefix: "/secrets/", value: swarm.Secret{}, swarm: true},
		{kind: "config", prefix: "/configs/", value: swarm.Config{}, swarm: true},
	}
}

type inspectOptions struct {
	format, kind, platform string
	size                   bool
}

func inspectCommand(a *app) *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use: "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Example: `escale inspect web
escale inspect -f '{{.State.Status}} {{.NetworkSettings.Networks.bridge.IPAddress}}' web
escale inspect --type image -f '{{json .Config.Env}}' debian`,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.checkKind(cmd.Flags().Changed("type")); err != nil {
				return err
			}
			return o.run(cmd.Context(), a, args)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.format, "format", "f", "", inspectHelp)
	f.BoolVarP(&o.size, "size", "s", false, "Show the size of a container's files")
	f.StringVar(&o.kind, "type", "", "Look only for this type of object")
	_ = cmd.RegisterFlagCompletionFunc("type", completeWords("container", "image", "network", "volume"))
	return cmd
}

// inspectOne makes the inspect of one kind of object. The options are given
// back, for what only this kind has.
func inspectOne(a *app, kind string, names cobra.CompletionFunc) (*cobra.Command, *inspectOptions) {
	o := &inspectOptions{kind: kind}
	word := strings.ToUpper(kind)
	cmd := &cobra.Command{
		Use:               "inspect [OPTIONS] " + word + " [" + word + "...]",
		Short:             "Show everything the engine knows about " + kind + "s",
		Args:              minArgs(1),
		ValidArgsFunction: names,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	cmd.Flags().StringVarP(&o.format, "format", "f", "", inspectHelp)
	return cmd, o
}

func containerInspectCommand(a *app) *cobra.Command {
	cmd, o := inspectOne(a, "container", completeContainers(a, allContainers, -1))
	cmd.Flags().BoolVarP(&o.size, "size", "s", false, "Show the size of files")
	return cmd
}

func imageInspectCommand(a *app) *cobra.Command {
	cmd, o := inspectOne(a, "image", completeImages(a, -1))
	cmd.Flags().StringVar(&o.platform, "platform", "", "Inspect this platform of the image: OS[/ARCH[/VARIANT]]")
	return cmd
}

func (o *inspectOptions) checkKind(given bool) error {
	const all = `config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume`
	if o.kind == "" {
		if given {
			return fmt.Errorf(`type is empty: must be one of "%s"`, all)
		}
		return nil
	}
	if strings.Contains(o.kind, `"`) || !strings.Contains(`"`+all+`"`, `"`+o.kind+`"`) {
		return fmt.Errorf(`unknown type: %q: must be one of "%s"`, o.kind, all)
	}
	return nil
}

func (o *inspectOptions) run(ctx context.Context, a *app, names []string) error {
	in, err := table.NewInspector(o.format)
	if err != nil {
		return &statusError{Code: 64, Text: err.Error()}
	}
	if _, err := a.client(); err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		raw, value, err := o.find(ctx, a, n)
		if err == nil {
			err = in.Add(raw, value)
		}
		if err != nil {
			errs = append(errs, err)
		}
		if moby.IsErrConnectionFailed(err) {
			break
		}
	}
	return errors.Join(errors.Join(errs...), in.Flush(a.out))
}

// find gets an object's JSON and a value of its type.
func (o *inspectOptions) find(ctx context.Context, a *app, name string) ([]byte, any, error) {
	if name == "" {
		return nil, nil, errors.New("invalid container name or ID: value is empty")
	}
	manager := ""
	for _, ob := range objects() {
		if o.kind != "" && ob.kind != o.kind {
			continue
		}
		if ob.swarm && o.kind == "" {
			if manager == "" {
				manager = a.isManager(ctx)
			}
			if manager != "yes" {
				continue
			}
		}
		raw, err := o.get(ctx, a, ob, name)
		if err != nil {
			if o.kind == "" && skippable(err) {
				continue
			}
			return nil, nil, err
		}
		if o.size && ob.kind != "container" {
			a.complain("WARNING: --size ignored for", ob.kind)
		}
		return raw, ob.value, nil
	}
	return nil, nil, fmt.Errorf("Error: No such object: %s", name) //nolint:staticcheck // Docker's words.
}

func (o *inspectOptions) get(ctx context.Context, a *app, ob object, name string) ([]byte, error) {
	q := url.Values{}
	if o.size && ob.kind == "container" {
		q.Set("size", "1")
	}
	if ob.kind == "service" {
		q.Set("insertDefaults", "true")
	}
	if p, err := parsePlatform(o.platform); err != nil {
		return nil, err
	} else if p != nil {
		q.Set("platform", fmt.Sprintf(`{"architecture":%q,"os":%q,"variant":%q}`, p.Architecture, p.OS, p.Variant))
	}
	resp, err := a.conn.Do(ctx, "GET", ob.prefix+name+ob.suffix, q, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (a *app) isManager(ctx context.Context) string {
	res, err := a.conn.Info(ctx, moby.InfoOptions{})
	if err != nil {
		a.complain(err)
		return "no"
	}
	if res.Info.Swarm.ControlAvailable {
		return "yes"
	}
	return "no"
}

// skippable tells that a name may yet be something else.
func skippable(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) ||
		strings.Contains(err.Error(), "not supported") || strings.Contains(err.Error(), "invalid reference format")
}
