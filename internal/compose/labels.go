package compose

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// The labels by which Docker Compose knows what is a project's.
const (
	LabelProject     = "com.docker.compose.project"
	LabelService     = "com.docker.compose.service"
	LabelVersion     = "com.docker.compose.version"
	LabelWorkingDir  = "com.docker.compose.project.working_dir"
	LabelConfigFiles = "com.docker.compose.project.config_files"
	LabelConfigHash  = "com.docker.compose.config-hash"
	LabelNumber      = "com.docker.compose.container-number"
	LabelOneOff      = "com.docker.compose.oneoff"
	LabelDependsOn   = "com.docker.compose.depends_on"
	LabelNetwork     = "com.docker.compose.network"
	LabelVolume      = "com.docker.compose.volume"
	LabelImage       = "com.docker.compose.image" // id of the image that a container was made from
)

// version is the version of Docker Compose as which we label: its labels' meaning.
const version = "2.36.0"

// serviceLabels are what containers of a service bear beside their number.
func serviceLabels(p *types.Project, s *types.ServiceConfig) (map[string]string, error) {
	hash, err := Hash(s)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	maps.Copy(out, s.Labels)
	maps.Copy(out, map[string]string{
		LabelProject: p.Name, LabelService: s.Name, LabelVersion: version, LabelOneOff: "False", LabelConfigHash: hash,
		LabelWorkingDir: p.WorkingDir, LabelConfigFiles: strings.Join(p.ComposeFiles, ","), LabelDependsOn: dependsOn(s),
	})
	return out, nil
}

// Hash tells whether a service has changed: it leaves out what needs no new
// container.
func Hash(s *types.ServiceConfig) (string, error) {
	c := *s
	c.Build, c.PullPolicy, c.Scale, c.DependsOn, c.Profiles = nil, "", nil, nil, nil
	if c.Deploy != nil {
		d := *c.Deploy
		d.Replicas = nil
		c.Deploy = &d
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("service %q: %w", s.Name, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// dependsOn writes dependencies as "db:service_healthy:false,…".
func dependsOn(s *types.ServiceConfig) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s.DependsOn)) {
		d := s.DependsOn[name]
		out = append(out, fmt.Sprintf("%s:%s:%t", name, d.Condition, d.Restart))
	}
	return strings.Join(out, ",")
}
