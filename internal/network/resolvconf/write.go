package resolvconf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
)

// HashSuffix ends the name of the file beside a container's, which tells whether
// somebody has changed that since: the digests of what it was written to be last, one
// a line.
const HashSuffix = ".hash"

func sum(text []byte) string {
	s := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(s[:])
}

// Write writes a container's file, in place, for it may be mounted. One that
// somebody has changed since stays as it is.
func Write(path, text string) error {
	var known []string
	if b, err := readFile(path + HashSuffix); err == nil {
		known = strings.Fields(string(b))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there, err := readFile(path)
	switch {
	case errors.Is(err, errForeign):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case len(there) > 0 && len(known) > 0 && !slices.Contains(known, sum(there)):
		return nil
	case len(known) > 0 && string(there) == text:
		return nil
	}
	// Noted before it is written, beside what is there: whoever is killed in between
	// leaves a file that is known, or one that is empty.
	note := sum([]byte(text)) + "\n" + sum(there) + "\n"
	if err := atomicfile.Write(path+HashSuffix, []byte(note), 0o644, atomicfile.Options{}); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
