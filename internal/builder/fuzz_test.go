package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"escale.dev/escale/internal/builder/request"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

// anyBase says of every image that it is there and empty.
type anyBase struct{}

func (anyBase) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config, err := json.Marshal(dockerspec.DockerOCIImage{})
	return ref, digest.FromString(ref), config, err
}

// FuzzDockerfile plans builds of Dockerfiles that anybody may send: an engine must
// not fall over one. Nothing is run.
func FuzzDockerfile(f *testing.F) {
	for _, s := range []string{
		from + "RUN --mount=type=cache,target=/c --network=none true\nCOPY --from=0 --chmod=1 --link a b /\n",
		"# syntax=x\n# escape=`\nARG A=1\nFROM a AS b\nFROM b\nRUN <<EOF cat\nx\nEOF\nCOPY <<-\"F\" /f\n\t${A:-x}\nF\n",
		"FROM --platform=$BUILDPLATFORM a\nONBUILD RUN x\nHEALTHCHECK --interval=1s CMD [\"x\"]\nEXPOSE 1-2/udp $P\nSTOPSIGNAL 9\nSHELL [\"a\"]\nVOLUME [\"/v\"]\n",
		"FROM scratch\nADD --checksum=sha256:00 https://x/y /z\nADD git@x:y.git#a:b /z\nLABEL a=\"b\\\nc\" d\nENV ${A#%x} b\nUSER 1:2\nWORKDIR ../x\n",
		"FROM a AS a\nCOPY --from=a / /\nFROM a\nRUN --security=insecure --device=x y\nMAINTAINER z\nCMD\n",
	} {
		f.Add([]byte(s), "A", "b")
	}
	f.Fuzz(func(t *testing.T, dockerfile []byte, arg, value string) {
		opt := dockerfile2llb.ConvertOpt{MetaResolver: anyBase{}}
		opt.BuildArgs = map[string]string{arg: value}
		r, err := dockerfile2llb.Dockerfile2LLB(t.Context(), dockerfile, opt)
		if err != nil {
			return
		}
		if _, err := r.State.Marshal(t.Context()); err != nil {
			return
		}
		if _, err := json.Marshal(r.Image); err != nil {
			t.Errorf("its configuration cannot be written: %v", err)
		}
	})
}

const from = "FROM debian\n"

// FuzzIgnore reads .dockerignore files and matches paths.
func FuzzIgnore(f *testing.F) {
	f.Add([]byte("*\n!a/**/b\n# c\n[a-\n\\\n../x\n"), "a/x/b")
	f.Add([]byte("\xef\xbb\xbf**/*.[!o]\n!\n"), "../..")
	f.Fuzz(func(t *testing.T, file []byte, path string) {
		patterns, err := ignorefile.ReadAll(bytes.NewReader(file))
		if err != nil {
			return
		}
		m, err := patternmatcher.New(patterns)
		if err != nil {
			return
		}
		_, _ = m.MatchesOrParentMatches(path)
		_, _, _ = m.MatchesUsingParentResults(path, patternmatcher.MatchInfo{})
	})
}

// FuzzSolveRequest puts what clients ask into BuildKit's words, or refuses it.
func FuzzSolveRequest(f *testing.F) {
	f.Add("a:1", "h:1.2.3.4", "host", "linux/amd64", "nofile", `{"name":"b"}`)
	f.Add("a@sha256:0", "h:[::1]", "none", "x/y/z/w", "", `{"push":"true","name":","}`)
	f.Fuzz(func(t *testing.T, tag, host, network, platform, limit, attrs string) {
		o := request.Build{Tags: []string{tag}, ExtraHosts: []string{host}, Network: network, Platform: platform, Ulimits: []*units.Ulimit{{Name: limit}}}
		var out request.Output
		if json.Unmarshal([]byte(attrs), &out.Attrs) == nil {
			o.Outputs = append(o.Outputs, out)
		}
		if _, err := solveRequest(&o); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("of no kind: %v", err)
		}
	})
}
