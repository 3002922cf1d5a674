package e2e

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/client"
	"escale.dev/escale/test/internal/harness"
)

// A service on an overlay network has one address, behind which are those of its tasks that
// run; a client finds it by name, also when the engine was killed, and nothing is left of the
// network when the app has gone.
func TestAppOverlay(t *testing.T) {
	e := start(t, harness.Options{})
	c, err := client.New(client.Options{Host: e.Host()})
	if err != nil {
		t.Fatal(err)
	}
	api := e.API()
	t.Cleanup(func() { api.Close(); c.Close() })
	web := harness.AppService{Image: image, Cmd: []string{"sh", "-c", "mkdir -p /w; hostname >/w/index.html; exec httpd -f -h /w"}, Health: "wget -q -O /dev/null http://127.0.0.1/", Replicas: 2}
	k := &keeper{t: t, e: e, api: api, c: c, app: harness.App{Name: "shop", Driver: "overlay", Services: map[string]harness.AppService{
		"web": web, "client": {Image: image, Cmd: stays},
	}}}
	k.up()
	// served are the host names that answer calls to the service.
	served := func(from string) []string {
		out := strings.Fields(k.does("exec", from, "sh", "-c", "for i in 1 2 3 4 5 6; do wget -q -O - http://web/; done"))
		slices.Sort(out)
		return slices.Compact(out)
	}
	addresses := func(name string) []string {
		var out []string
		for _, line := range strings.Split(k.does("exec", "shop-client-1", "nslookup", "-type=a", name), "\n") {
			if a, ok := strings.CutPrefix(line, "Address"); ok && !strings.HasSuffix(line, ":53") {
				out = append(out, a[strings.LastIndex(a, " ")+1:])
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	if got := addresses("web"); len(got) != 1 || !strings.HasPrefix(got[0], "10.0.") {
		t.Errorf("the service's addresses are %v, want one of the cluster's", got)
	}
	if got := addresses("tasks.shop_web"); len(got) != 2 {
		t.Errorf("its tasks' addresses are %v, want two", got)
	}
	both := served("shop-client-1")
	if len(both) != 2 {
		t.Errorf("%v answer, want both", both)
	}
	if got := served("shop-web-1"); !slices.Equal(got, both) {
		t.Errorf("from one of them %v answer, want both", got)
	}
	if got := k.does("network", "inspect", "-f", "{{.Driver}} {{.Scope}}", "shop_default"); got != "overlay swarm" {
		t.Errorf("the network is %q", got)
	}
	if err := errors.Join(e.Kill(), e.Start(k.ctx())); err != nil {
		t.Fatal(err)
	}
	if got := served("shop-client-1"); !slices.Equal(got, both) {
		t.Errorf("after the engine was killed %v answer, want %v", got, both)
	}
	web.Replicas = 1
	k.app.Services["web"] = web
	k.up()
	if got := served("shop-client-1"); len(got) != 1 {
		t.Errorf("of one replica %v answer", got)
	}
	k.down(false)
	if got := k.does("network", "ls", "-q", "--filter", "driver=overlay"); got != "" {
		t.Errorf("networks that are left: %s", got)
	}
	noLeaks(t, e)
}
