package deploy

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

const files = "../../../testdata/stack/"

// known are the names of a cluster, each its own ID behind "id-".
type known struct{}

func (known) Network(_ context.Context, name string) (string, error) { return "id-" + name, nil }
func (known) Secrets(_ context.Context, names []string) (map[string]string, error) {
	m := map[string]string{}
	for _, n := range names {
		m[n] = "id-" + n
	}
	return m, nil
}
func (k known) Configs(ctx context.Context, names []string) (map[string]string, error) {
	return k.Secrets(ctx, names)
}

func TestService(t *testing.T) {
	var said strings.Builder
	c, err := load(strings.NewReader(""), &said, []string{files + "full.yml"}, []string{"TAG=7"})
	if err != nil || said.String() != "Ignoring unsupported options: restart\n\n" {
		t.Fatal(err, said.String())
	}
	n := namespace("shop")
	own, external := n.networks(c)
	if got := strings.Join(slices.Sorted(maps.Keys(own)), " "); got != "shop_default shop_front" || !slices.Equal(external, []string{"host", "back"}) && !slices.Equal(external, []string{"back", "host"}) {
		t.Errorf("networks %s, of others %s", got, external)
	}
	specs := map[string]*swarm.ServiceSpec{}
	for i := range c.Services {
		s, err := n.service(t.Context(), c, &c.Services[i], known{})
		if err != nil {
			t.Fatal(err)
		}
		specs[s.Name] = s
	}
	web := specs["shop_web"]
	body := web.TaskTemplate.ContainerSpec
	if body.Image != "nginx:7" || web.Labels[imageLabel] != "nginx:7" || web.Labels[stackLabel] != "shop" || body.Labels["inner"] != "yes" {
		t.Errorf("%+v %+v", web.Labels, body)
	}
	if *web.Mode.Replicated.Replicas != 3 || *body.StopGracePeriod != 3*time.Second || web.UpdateConfig.Parallelism != 2 || web.RollbackConfig.Parallelism != 0 || web.TaskTemplate.Resources.Limits.NanoCPUs != 1_500_000_000 {
		t.Errorf("%+v", web)
	}
	var mounts []string
	for _, m := range body.Mounts {
		mounts = append(mounts, string(m.Type)+":"+m.Source+":"+m.Target)
	}
	if got := strings.Join(mounts, " "); got != "volume:shop_data:/v volume:kept:/k volume:real:/n bind:/host:/c volume::/anon tmpfs::/t bind:/b:/b volume:shop_data:/x" || body.Mounts[6].BindOptions.Propagation != mount.PropagationRSlave {
		t.Error(got)
	}
	if s := body.Secrets; len(s) != 2 || s[0].SecretID != "id-key2" || s[0].File.Mode != 0o400 || s[1].SecretID != "id-shop_key" {
		t.Errorf("%+v", s)
	}
	if p := specs["shop_a"].TaskTemplate.RestartPolicy; p.Condition != swarm.RestartPolicyConditionOnFailure || *p.MaxAttempts != 3 {
		t.Errorf("%+v", p)
	}
	if specs["shop_agent"].Mode.Global == nil || *specs["shop_batch"].Mode.ReplicatedJob.TotalCompletions != 4 {
		t.Error("modes")
	}
}

func TestLoad(t *testing.T) {
	for name, c := range map[string]struct{ err, said string }{
		"odd.yml":      {"", "Ignoring unsupported options: build, "},
		"noimage.yml":  {"invalid image reference for service a: no image specified", ""},
		"badimage.yml": {"invalid image reference for service a: ", ""},
		"extra.yml":    {"services.a Additional property nosuch is not allowed", ""},
		"badtype.yml":  {"services.a.image must be a string", ""},
		"two.yml":      {"unsupported Compose file version: 2.1", ""},
		"nosuch.yml":   {"no such file or directory", ""},
	} {
		var said strings.Builder
		_, err := load(strings.NewReader(""), &said, []string{files + name}, nil)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || !strings.HasPrefix(said.String(), c.said) {
			t.Errorf("%s: %v, said %q", name, err, said.String())
		}
	}
}
