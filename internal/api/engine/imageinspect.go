package engine

import (
	"context"
	"net/http"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apiimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageAnswer is an image for inspection with what older versions had besides.
type imageAnswer struct {
	apiimage.InspectResponse
	Config any // of a form that depends on the version

	// Before 1.52 these were there also when empty.
	Parent, DockerVersion, Comment, Author *string `json:",omitempty"`

	VirtualSize     *int64       `json:"VirtualSize,omitempty"`     // before 1.44
	Container       *string      `json:"Container,omitempty"`       // before 1.45
	ContainerConfig *imageConfig `json:"ContainerConfig,omitempty"` // before 1.45
}

// imageConfig is the configuration of an image before 1.50, when it was that of
// a container and showed nothing as null.
type imageConfig struct {
	Hostname, Domainname                    *string `json:",omitempty"`
	User                                    string
	AttachStdin, AttachStdout, AttachStderr *bool               `json:",omitempty"`
	ExposedPorts                            map[string]struct{} `json:",omitempty"`
	Tty, OpenStdin, StdinOnce               *bool               `json:",omitempty"`
	Env, Cmd                                []string
	Healthcheck                             *dockerspec.HealthcheckConfig `json:",omitempty"`
	Image                                   *string                       `json:",omitempty"`
	Volumes                                 map[string]struct{}
	WorkingDir                              string
	Entrypoint, OnBuild                     []string
	Labels                                  map[string]string
	StopSignal                              string   `json:",omitempty"`
	Shell                                   []string `json:",omitempty"`
}

func (i imageRoutes) inspect(w *response, r *request) error {
	if r.query.bool("manifests") && r.query.get("platform") != "" {
		return invalidf("conflicting options: manifests and platform options cannot both be set")
	}
	img, err := i.cfg.Images.Get(r.Context(), r.name)
	if err != nil {
		return err
	}
	if !r.version.before(49) {
		if err := hasPlatform(&img, r); err != nil {
			return err
		}
	}
	answer := i.imageAnswer(&img, r.version)
	if r.query.bool("manifests") && !r.version.before(48) {
		if answer.Manifests, err = i.manifests(r.Context(), &img); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (i imageRoutes) imageAnswer(img *image.Image, ver version) imageAnswer {
	a := imageAnswer{InspectResponse: apiimage.InspectResponse{
		ID: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests,
		Architecture: img.Config.Architecture, Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion,
		Size: img.Size, Metadata: apiimage.Metadata{LastTagTime: img.LastTagged},
		GraphDriver: &storage.DriverData{Name: i.cfg.StorageDriver},
		RootFS:      apiimage.RootFS{Type: "layers"},
	}}
	orEmpty(&a.RepoTags)
	orEmpty(&a.RepoDigests)
	for _, d := range img.Config.RootFS.DiffIDs {
		a.RootFS.Layers = append(a.RootFS.Layers, d.String())
	}
	if img.Config.Created != nil {
		a.Created = img.Config.Created.UTC().Format(time.RFC3339Nano)
	} else if ver.before(44) {
		a.Created = time.Time{}.Format(time.RFC3339Nano)
	}
	a.Config = &img.Config.Config
	if ver.before(52) {
		none := ""
		a.Parent, a.DockerVersion, a.Comment, a.Author = &none, &none, &img.Comment, &img.Config.Author
		a.Config = oldImageConfig(&img.Config.Config, ver)
	} else {
		if img.Comment != "" {
			a.Comment = &img.Comment
		}
		if img.Config.Author != "" {
			a.Author = &img.Config.Author
		}
	}
	if ver.before(44) {
		a.VirtualSize = &img.Size
	}
	if ver.before(45) {
		none := ""
		a.Container, a.ContainerConfig = &none, oldImageConfig(&dockerspec.DockerOCIImageConfig{}, ver)
	}
	if !ver.before(48) && img.Target.Digest != "" {
		a.Descriptor = descriptor(img)
	}
	return a
}

// descriptor is what the image's name stands for.
func descriptor(img *image.Image) *ocispec.Descriptor {
	if img.Index.Digest != "" {
		return &img.Index
	}
	return &img.Target
}

// manifests lists what an image's name stands for. An image is unpacked for the
// host's platform only.
func (i imageRoutes) manifests(ctx context.Context, img *image.Image) ([]apiimage.ManifestSummary, error) {
	parts, err := i.cfg.Images.Parts(ctx, *img)
	if err != nil {
		return nil, err
	}
	users := i.users()
	out := make([]apiimage.ManifestSummary, 0, len(parts))
	for _, p := range parts {
		m := apiimage.ManifestSummary{ID: p.Manifest.Digest.String(), Descriptor: p.Manifest, Available: true, Kind: apiimage.ManifestKindImage}
		m.Size.Content, m.Size.Total = p.Size, p.Size
		if p.Of != "" {
			m.Kind, m.AttestationData = apiimage.ManifestKindAttestation, &apiimage.AttestationProperties{For: p.Of}
			out = append(out, m)
			continue
		}
		m.ImageData = &apiimage.ImageProperties{Containers: []string{}}
		if p.Manifest.Platform != nil {
			m.ImageData.Platform = *p.Manifest.Platform
		}
		if p.Here {
			m.ImageData.Size.Unpacked = img.Size
			m.Size.Total += img.Size
			for _, u := range users(img.ID) {
				m.ImageData.Containers = append(m.ImageData.Containers, u.Container)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

func oldImageConfig(c *dockerspec.DockerOCIImageConfig, ver version) *imageConfig {
	a := &imageConfig{
		User: c.User, ExposedPorts: c.ExposedPorts, Env: c.Env, Cmd: c.Cmd, Healthcheck: c.Healthcheck,
		Volumes: c.Volumes, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, OnBuild: c.OnBuild,
		Labels: c.Labels, StopSignal: c.StopSignal, Shell: c.Shell,
	}
	if ver.before(50) {
		none, no := "", false
		a.Hostname, a.Domainname, a.Image = &none, &none, &none
		for _, b := range []**bool{&a.AttachStdin, &a.AttachStdout, &a.AttachStderr, &a.Tty, &a.OpenStdin, &a.StdinOnce} {
			*b = &no
		}
	}
	return a
}

// hasPlatform refuses an image that is not of the platform asked for.
func hasPlatform(img *image.Image, r *request) error {
	want, err := platformObject(r.query)
	if err != nil || want == "" {
		return err
	}
	if have := formatPlatform(img); have != want {
		return notFoundf("image with reference %s was found but does not provide the specified platform (%s)", r.name, want)
	}
	return nil
}

// formatPlatform is an image's platform in the spelling of platformObject.
func formatPlatform(img *image.Image) string {
	return platforms.Format(platforms.Normalize(img.Config.Platform))
}
