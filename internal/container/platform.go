package container

import (
	"fmt"

	"escale.dev/escale/internal/image"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// checkPlatform refuses an image of another platform than the client asked for,
// and warns of one that is not this machine's when it did not ask. NotFound, as
// Docker has it: clients then try to pull the right one.
func checkPlatform(ref, asked string, img image.Image) (warnings []string, err error) {
	is := ocispec.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	if is.Architecture == "" {
		return nil, nil // the image does not say
	}
	if asked == "" {
		own := platforms.DefaultSpec()
		if !runsOn(own, is) {
			return []string{fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested", platforms.FormatAll(is), platforms.FormatAll(own))}, nil
		}
		return nil, nil
	}
	want, err := platforms.Parse(asked)
	if err != nil {
		return nil, kindf(errInvalid, "invalid platform %q: %s", asked, err)
	}
	if !runsOn(want, is) {
		return nil, kindf(errNotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", ref, platforms.FormatAll(is), platforms.FormatAll(want))
	}
	return nil, nil
}

// runsOn tells whether an image can serve for a platform; one without a variant
// serves for all of its architecture.
func runsOn(p, img ocispec.Platform) bool {
	if platforms.Only(p).Match(img) {
		return true
	}
	p, n := platforms.Normalize(p), platforms.Normalize(img)
	return img.Variant == "" && p.OS == n.OS && p.Architecture == n.Architecture
}
