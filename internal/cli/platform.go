package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parsePlatform reads OS, OS/ARCH or OS/ARCH/VARIANT; a lone word may also be
// an architecture. Names are made the usual ones (x86_64 is amd64), and a
// variant that is the usual one of its architecture is left out unless it was
// asked for. It gives nil for "".
func parsePlatform(s string) (*ocispec.Platform, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.SplitN(strings.ToLower(s), "/", 4)
	for _, p := range parts {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return nil, fmt.Errorf("%q is an invalid component of %q: platform specifier component must match %q: invalid argument", p, s, "^[A-Za-z0-9_.-]+$")
		}
	}
	p := &ocispec.Platform{OS: parts[0]}
	switch len(parts) {
	case 1:
		if knownOS(p.OS) {
			p.Architecture = runtime.GOARCH
			break
		}
		p.OS = runtime.GOOS
		p.Architecture, p.Variant = usualArch(parts[0])
		if !knownArch(p.Architecture) {
			return nil, fmt.Errorf("%q: unknown operating system or architecture: invalid argument", s)
		}
	case 2:
		p.Architecture, p.Variant = usualArch(parts[1])
	case 3:
		p.Architecture, p.Variant = normalArch(parts[1], parts[2])
		if p.Architecture == "arm64" && p.Variant == "" {
			p.Variant = "v8"
		}
	default:
		return nil, fmt.Errorf("%q: cannot parse platform specifier: invalid argument", s)
	}
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	return p, nil
}

// usualArch is an architecture named without a variant.
func usualArch(arch string) (string, string) {
	arch, variant := normalArch(arch, "")
	if arch == "arm" && variant == "v7" {
		variant = ""
	}
	return arch, variant
}

func normalArch(arch, variant string) (string, string) {
	switch arch {
	case "i386":
		return "386", ""
	case "armhf":
		return "arm", "v7"
	case "armel":
		return "arm", "v6"
	case "x86_64", "x86-64", "amd64":
		if variant == "v1" {
			variant = ""
		}
		return "amd64", variant
	case "aarch64", "arm64":
		switch variant {
		case "8", "v8", "v8.0":
			variant = ""
		case "9", "9.0", "v9.0":
			variant = "v9"
		}
		return "arm64", variant
	case "arm":
		switch variant {
		case "":
			variant = "v7"
		case "5", "6", "7", "8":
			variant = "v" + variant
		}
	}
	return arch, variant
}

func knownOS(s string) bool {
	switch s {
	case "linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "aix", "android", "js", "plan9":
		return true
	}
	return false
}

func knownArch(s string) bool {
	switch s {
	case "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm":
		return true
	}
	return false
}

func platformString(p ocispec.Platform) string { return path.Join(p.OS, p.Architecture, p.Variant) }

// decode reads an answer's JSON and closes it.
func decode(resp *http.Response, to any) error {
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(to)
}
