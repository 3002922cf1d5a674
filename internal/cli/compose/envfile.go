package compose

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/dotenv"

	"escale.dev/escale/internal/cli/spec"
)

// formats has compose-go know, once, the formats of env_file that are not its own.
var formats = sync.OnceFunc(func() { dotenv.RegisterFormat("raw", rawFile) })

// rawFile reads a file of env_file whose format is raw: as --env-file of run reads it, quotes and
// all, without variables in it.
func rawFile(r io.Reader, name string, vars map[string]string, lookup func(string) (string, bool)) error {
	lines, err := spec.ParseKeyValues(r, lookup)
	if err != nil {
		return fmt.Errorf("env_file %s: %w", name, err)
	}
	for _, line := range lines {
		key, value, _ := strings.Cut(line, "=")
		vars[key] = value
	}
	return nil
}
