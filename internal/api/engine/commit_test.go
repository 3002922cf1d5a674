package engine

import (
	"strings"
	"testing"

	"escale.dev/escale/internal/container"
)

func TestCommitRoute(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.cfg.Archives = fakeArchives{got: new(container.WriteFiles)} })
	for _, c := range []struct {
		query, body string
		status      int
		want        string
	}{
		{"container=web&repo=docker.io/library/img&tag=1&comment=c&author=a&changes=CMD+x&changes=ENV+a=b", "null", 201,
			`\"Ref\":\"img:1\",\"Author\":\"a\",\"Comment\":\"c\",\"NoPause\":false,\"Config\":null,\"Changes\":[\"CMD x\",\"ENV a=b\"]`},
		{"container=web&pause=0", "", 201, `\"Ref\":\"\",\"Author\":\"\",\"Comment\":\"\",\"NoPause\":true,\"Config\":null,\"Changes\":null`},
		{"container=web&pause=1", `{"Cmd":["x"]}`, 201, `\"Cmd\":[\"x\"]`},
		{"", "", 404, `No such container: `},
		{"container=web&repo=A", "", 400, `invalid reference format`},
		{"container=web&repo=a&tag=b:c", "", 400, `invalid tag format`},
		{"container=web", `{"Cmd":`, 400, `invalid JSON`},
	} {
		if status, _, body := r.do("POST", "/commit?"+c.query, c.body, "Content-Type", "application/json"); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.query, c.body, status, body, c.status, c.want)
		}
	}
}
