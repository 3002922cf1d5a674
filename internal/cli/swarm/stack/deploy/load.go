package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/compose/loader"
	"github.com/docker/cli/cli/compose/schema"
	"github.com/docker/cli/cli/compose/types"
	"go.yaml.in/yaml/v3"
)

// details reads the files, and what variables in them come to.
func details(in io.Reader, files, environ []string) (types.ConfigDetails, error) {
	var d types.ConfigDetails
	if len(files) == 0 {
		return d, errors.New("Specify a Compose file (with --compose-file)") //nolint:staticcheck // Docker's words.
	}
	first, err := filepath.Abs(files[0])
	if err != nil {
		return d, err
	}
	d.WorkingDir = filepath.Dir(first) // of "-", too
	for _, name := range files {
		text, err := read(in, name)
		if err != nil {
			return d, err
		}
		config, err := loader.ParseYAML(text)
		if err != nil {
			return d, err
		}
		d.ConfigFiles = append(d.ConfigFiles, types.ConfigFile{Filename: name, Config: config})
	}
	d.Version = schema.Version(d.ConfigFiles[0].Config)
	d.Environment = map[string]string{}
	for _, e := range environ {
		k, v, ok := strings.Cut(e, "=")
		if !ok || k == "" {
			return d, fmt.Errorf("unexpected environment variable '%s'", e)
		}
		d.Environment[k] = v
	}
	return d, nil
}

func read(in io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

// load reads the files of a stack, and says what of them a stack cannot have.
func load(in io.Reader, complain io.Writer, files, environ []string) (*types.Config, error) {
	d, err := details(in, files, environ)
	if err != nil {
		return nil, err
	}
	c, err := loader.Load(d)
	var forbidden *loader.ForbiddenPropertiesError
	if errors.As(err, &forbidden) {
		return nil, fmt.Errorf("Compose file contains unsupported options:\n\n%s\n", reasons(forbidden.Properties)) //nolint:staticcheck // Docker's words.
	}
	if err != nil {
		return nil, reworded(err)
	}
	var dicts []map[string]any
	for _, f := range d.ConfigFiles {
		dicts = append(dicts, f.Config)
	}
	if names := loader.GetUnsupportedProperties(dicts...); len(names) > 0 {
		fmt.Fprintf(complain, "Ignoring unsupported options: %s\n\n", strings.Join(names, ", "))
	}
	if names := loader.GetDeprecatedProperties(dicts...); len(names) > 0 {
		fmt.Fprintf(complain, "Ignoring deprecated options:\n\n%s\n\n", reasons(names))
	}
	for _, s := range c.Services {
		if s.Image == "" {
			return nil, fmt.Errorf("invalid image reference for service %s: no image specified", s.Name)
		}
		if _, err := reference.ParseAnyReference(s.Image); err != nil {
			return nil, fmt.Errorf("invalid image reference for service %s: %w", s.Name, err)
		}
	}
	return c, nil
}

// What the reader says of a file that its version's schema does not allow.
var (
	additional = regexp.MustCompile(`^(\S+): additional property '(.+)' is not allowed$`)
	mustBe     = regexp.MustCompile(`^(\S+): (must be .+)$`)
)

// reworded is such an error in the words of Docker 28, which people look for.
func reworded(err error) error {
	text := additional.ReplaceAllString(err.Error(), "$1 Additional property $2 is not allowed")
	text = mustBe.ReplaceAllString(text, "$1 $2")
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

// reasons are those why a stack has no such option.
func reasons(options map[string]string) string {
	var list []string
	for name, why := range options {
		list = append(list, name+": "+why)
	}
	slices.Sort(list)
	return strings.Join(list, "\n\n")
}

// config is what the files come to.
func config(in io.Reader, files, environ []string, raw bool) (string, error) {
	d, err := details(in, files, environ)
	if err != nil {
		return "", err
	}
	c, err := loader.Load(d, func(o *loader.Options) { o.SkipInterpolation = raw })
	if err != nil {
		return "", reworded(err)
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(c); err != nil {
		return "", err
	}
	return out.String(), nil
}
