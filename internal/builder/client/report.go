package client

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/errdefs"
)

// explain tells an error: the lines of the Dockerfile that it is about, with the
// guilty ones marked, then what is wrong.
func explain(w io.Writer, err error) {
	for _, s := range errdefs.Sources(err) {
		_ = s.Print(w)
	}
	fmt.Fprintf(w, "ERROR: failed to build: %s\n", err)
}

// warn tells what the frontend has noticed; each in full only when debugging.
func (b *build) warn(list []client.VertexWarning) {
	if len(list) == 0 || b.plan.Quiet || b.plan.Progress == "rawjson" {
		return
	}
	w := b.streams.Err
	noun := "warnings"
	if len(list) == 1 {
		noun = "warning"
	}
	hint := " (use --debug to expand)"
	if b.plan.Debug {
		hint = ""
	}
	fmt.Fprintf(w, "\n %d %s found%s:\n", len(list), noun, hint)
	for _, one := range list {
		line := ""
		if len(one.Range) > 0 {
			line = fmt.Sprintf(" (line %d)", one.Range[0].Start.Line)
		}
		fmt.Fprintf(w, " - %s%s\n", one.Short, line)
		if !b.plan.Debug {
			continue
		}
		for _, d := range one.Detail {
			fmt.Fprintf(w, "%s\n", d)
		}
		if one.URL != "" {
			fmt.Fprintf(w, "More info: %s\n", one.URL)
		}
		src := errdefs.Source{Info: one.SourceInfo, Ranges: one.Range}
		_ = src.Print(w)
		fmt.Fprintln(w)
	}
}

// done writes what is asked for about the result.
func (b *build) done(answer map[string]string) error {
	id := answer["containerimage.config.digest"]
	if d := answer["containerimage.digest"]; id == "" || !b.image && d != "" {
		id = d
	}
	if b.plan.IDFile != "" {
		if err := os.WriteFile(b.plan.IDFile, []byte(id), 0o644); err != nil {
			return err
		}
	}
	if b.plan.MetadataFile != "" {
		data, err := json.MarshalIndent(metadata(answer), "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.plan.MetadataFile, data, 0o644); err != nil {
			return err
		}
	}
	if b.plan.Quiet && id != "" {
		_, err := fmt.Fprintln(b.streams.Out, id)
		return err
	}
	return nil
}

// metadata is the builder's answer, with what is JSON in it unpacked.
func metadata(answer map[string]string) map[string]any {
	out := map[string]any{}
	for key, value := range answer {
		if key == "" || strings.HasPrefix(key, "buildx.") {
			continue
		}
		out[key] = value
		if raw, err := base64.StdEncoding.DecodeString(value); err == nil && strings.HasPrefix(string(raw), "{") && json.Valid(raw) {
			out[key] = json.RawMessage(raw)
		}
	}
	return out
}

// findings is the end of a check that has found something and told it.
type findings int

func (f findings) Error() string { return fmt.Sprintf("%d findings", int(f)) }

var errNoAnswer = errors.New("the frontend does not know this call")
