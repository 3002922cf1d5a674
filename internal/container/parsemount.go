package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// parseBind reads one -v specification: SOURCE:DESTINATION[:MODE] or DESTINATION.
func parseBind(spec string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, kindf(errInvalid, "invalid volume specification: '%s'%s", spec, why)
	}
	parts := strings.Split(spec, ":")
	if parts[0] == "" || len(parts) > 3 || len(parts) == 2 && isMode(parts[1]) {
		return bad("")
	}
	p := Mount{RW: true}
	if len(parts) == 1 {
		p.Type, p.Destination = mount.TypeVolume, parts[0]
	} else {
		src := parts[0]
		p.Destination = parts[1]
		if filepath.IsAbs(src) {
			p.Type, p.Source, p.Propagation = mount.TypeBind, filepath.Clean(src), mount.PropagationRPrivate
		} else {
			p.Type, p.Name = mount.TypeVolume, src
		}
	}
	var modes map[string]string
	if len(parts) == 3 {
		var ok bool
		if modes, ok = readMode(parts[2]); !ok {
			return Mount{}, kindf(errInvalid, "invalid mode: %s", parts[2])
		}
	}
	kind := ": invalid mount config for type \"" + string(p.Type) + "\": "
	if err := checkTarget(p.Destination); err != nil {
		return bad(kind + err.Error())
	}
	switch {
	case p.Type == mount.TypeBind && modes["copy"] != "":
		return bad(kind + "field VolumeOptions must not be specified")
	case p.Type == mount.TypeVolume && modes["propagation"] != "":
		return bad(kind + "field BindOptions must not be specified")
	}
	p.Destination = filepath.Clean(p.Destination)
	if len(parts) == 3 {
		p.Mode, p.RW = parts[2], modes["access"] != "ro"
	}
	if m := modes["propagation"]; m != "" {
		p.Propagation = mount.Propagation(m)
	}
	return p, nil
}

// isMode tells whether Docker takes s for the mode of a mount.
func isMode(s string) bool {
	_, ok := readMode(s)
	return ok
}

// readMode splits the third part of a -v specification by what its words are
// about; false: not one that Docker knows.
func readMode(mode string) (map[string]string, bool) {
	out := map[string]string{}
	if mode == "" {
		return out, true
	}
	for _, word := range strings.Split(mode, ",") {
		kind := ""
		switch word {
		case "ro", "rw":
			kind = "access"
		case "z", "Z":
			kind = "label" // SELinux relabelling: without effect on kernels without it
		case "nocopy":
			kind = "copy"
		case "consistent", "cached", "delegated":
			kind = "consistency"
		default:
			if !slices.Contains(mount.Propagations, mount.Propagation(word)) {
				return nil, false
			}
			kind = "propagation"
		}
		if out[kind] != "" {
			return nil, false
		}
		out[kind] = word
	}
	return out, true
}

// checkTarget refuses destinations that cannot be, in Docker's words.
func checkTarget(dst string) error {
	switch {
	case dst == "":
		return kindf(errInvalid, "field Target must not be empty")
	case filepath.Clean(dst) == "/":
		return kindf(errInvalid, "invalid specification: destination can't be '/'")
	case !filepath.IsAbs(dst):
		return kindf(errInvalid, "invalid mount path: '%s' mount path must be absolute", dst)
	}
	return nil
}

// parseMount reads one --mount.
func parseMount(mt *mount.Mount) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, kindf(errInvalid, "invalid mount config for type %q: %s", mt.Type, why)
	}
	if err := checkTarget(mt.Target); err != nil {
		return bad(err.Error())
	}
	check := map[mount.Type]func(*mount.Mount) string{
		mount.TypeBind: wrongBind, mount.TypeVolume: wrongVolume, mount.TypeTmpfs: wrongTmpfs, mount.TypeImage: wrongImage,
	}[mt.Type]
	if check == nil {
		return bad("mount type unknown")
	}
	if why := check(mt); why != "" {
		return bad(why)
	}
	p := Mount{Type: mt.Type, Destination: filepath.Clean(mt.Target), RW: !mt.ReadOnly}
	switch mt.Type {
	case mount.TypeBind:
		p.Source, p.Propagation = filepath.Clean(mt.Source), mount.PropagationRPrivate
		if o := mt.BindOptions; o != nil && o.Propagation != "" {
			p.Propagation = o.Propagation
		}
	case mount.TypeVolume:
		p.Name = mt.Source
		if o := mt.VolumeOptions; o != nil && o.DriverConfig != nil && o.DriverConfig.Name != "" {
			p.Driver = o.DriverConfig.Name
		}
	case mount.TypeImage:
		p.Name, p.RW, p.Propagation = mt.Source, false, mount.PropagationRPrivate
	}
	return p, nil
}

func wrongBind(mt *mount.Mount) string {
	switch o := mt.BindOptions; {
	case mt.Source == "":
		return "field Source must not be empty"
	case o != nil && o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation):
		return "invalid propagation mode: " + string(o.Propagation)
	case mt.VolumeOptions != nil:
		return "field VolumeOptions must not be specified"
	case mt.ImageOptions != nil:
		return "field ImageOptions must not be specified"
	case !filepath.IsAbs(mt.Source):
		return "invalid mount path: '" + mt.Source + "' mount path must be absolute"
	case o == nil || !o.CreateMountpoint:
		if _, err := os.Stat(mt.Source); err != nil {
			return "bind source path does not exist: " + mt.Source
		}
	}
	return ""
}

func wrongVolume(mt *mount.Mount) string {
	o := mt.VolumeOptions
	sub := o != nil && o.Subpath != ""
	switch {
	case mt.BindOptions != nil:
		return "field BindOptions must not be specified"
	case mt.ImageOptions != nil:
		return "field ImageOptions must not be specified"
	case sub && mt.Source == "":
		return "must not set Subpath when using anonymous volumes"
	case sub && !filepath.IsLocal(o.Subpath):
		return "subpath must be a relative path within the volume"
	case mt.ReadOnly && mt.Source == "":
		return "must not set ReadOnly mode when using anonymous volumes"
	}
	return ""
}

func wrongTmpfs(mt *mount.Mount) string {
	switch {
	case mt.BindOptions != nil:
		return "field BindOptions must not be specified"
	case mt.ImageOptions != nil:
		return "field ImageOptions must not be specified"
	case mt.Source != "":
		return "field Source must not be specified"
	case mt.TmpfsOptions == nil:
		return ""
	}
	for _, kv := range mt.TmpfsOptions.Options {
		switch {
		case len(kv) < 1 || len(kv) > 2:
			return "invalid option array length"
		case kv[0] != "exec" && kv[0] != "noexec":
			return "invalid option: " + kv[0]
		}
	}
	return ""
}

func wrongImage(mt *mount.Mount) string {
	switch {
	case mt.BindOptions != nil:
		return "field BindOptions must not be specified"
	case mt.VolumeOptions != nil:
		return "field VolumeOptions must not be specified"
	case mt.Source == "":
		return "field Source must not be empty"
	case mt.ImageOptions != nil && mt.ImageOptions.Subpath != "" && !filepath.IsLocal(mt.ImageOptions.Subpath):
		return "subpath must be a relative path within the volume"
	}
	return ""
}
