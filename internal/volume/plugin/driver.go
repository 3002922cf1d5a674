package plugin

import (
	"context"
	"strings"
	"time"

	"escale.dev/escale/internal/plugin"
)

// How long a plugin has, as Docker gives it.
const (
	longTime  = 2 * time.Minute // to make, mount and list
	shortTime = time.Minute
)

// told is a volume as a plugin tells it.
type told struct {
	Name       string
	Mountpoint string
	CreatedAt  string // a time in RFC 3339; anything else is none
	Status     map[string]any
}

// createdAt is when the volume was made; zero when the plugin does not say so.
func (v *told) createdAt() time.Time {
	at, _ := time.Parse(time.RFC3339, v.CreatedAt)
	return at.UTC()
}

// driver is the calls of the protocol.
type driver struct{ *plugin.Plugin }

type named struct{ Name string }

func (d driver) create(ctx context.Context, name string, opts map[string]string) error {
	return d.Call(ctx, "VolumeDriver.Create", struct {
		Name string
		Opts map[string]string
	}{name, opts}, nil, plugin.How{Timeout: longTime})
}

func (d driver) remove(ctx context.Context, name string) error {
	return d.Call(ctx, "VolumeDriver.Remove", named{name}, nil, plugin.How{Timeout: shortTime, Once: true})
}

// get gives nil for a volume that the plugin does not know, whatever it says of it.
func (d driver) get(ctx context.Context, name string, how plugin.How) (*told, error) {
	var answer struct{ Volume *told }
	err := d.Call(ctx, "VolumeDriver.Get", named{name}, &answer, how)
	if isRemote(err) {
		return nil, nil
	}
	return answer.Volume, err
}

func (d driver) list(ctx context.Context) ([]told, error) {
	var answer struct{ Volumes []told }
	err := d.Call(ctx, "VolumeDriver.List", nil, &answer, plugin.How{Once: true})
	return answer.Volumes, err
}

// mount has the plugin mount a volume for id, and gives the place on this machine.
func (d driver) mount(ctx context.Context, name, id string) (string, error) {
	var answer struct{ Mountpoint string }
	err := d.Call(ctx, "VolumeDriver.Mount", struct{ Name, ID string }{name, id}, &answer, plugin.How{Timeout: longTime})
	return d.Path(answer.Mountpoint), err
}

// unmount tells the end of a mount; once says that a plugin that is just being started is not waited for.
func (d driver) unmount(ctx context.Context, name, id string, once bool) error {
	return d.Call(ctx, "VolumeDriver.Unmount", struct{ Name, ID string }{name, id}, nil, plugin.How{Timeout: shortTime, Once: once})
}

// scope is "global" for volumes that other machines have as well. A plugin need not
// know the question.
func (d driver) scope(ctx context.Context) string {
	var answer struct{ Capabilities struct{ Scope string } }
	if err := d.Call(ctx, "VolumeDriver.Capabilities", nil, &answer, plugin.How{Timeout: shortTime, Once: true}); err != nil {
		return "local"
	}
	if strings.EqualFold(answer.Capabilities.Scope, "global") {
		return "global"
	}
	return "local"
}
