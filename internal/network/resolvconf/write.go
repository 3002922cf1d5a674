package resolvconf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// A container's file begins with a line of ours that bears a digest of all that follows:
// by it is told whether somebody has changed the file since.
const (
	sealed    = "# Made by Escale ("
	sealedEnd = "), which leaves this file alone once it was changed.\n"
)

// seal puts the line before text.
func seal(text string) string {
	sum := sha256.Sum256([]byte(text))
	return sealed + hex.EncodeToString(sum[:8]) + sealedEnd + text
}

// untouched tells that a file is as it was written.
func untouched(there string) bool {
	_, text, _ := strings.Cut(there, "\n")
	return there == seal(text)
}

// olderSuffix ends the name of a file beside a container's in which older engines noted
// the digests of what they wrote last, one a line.
const olderSuffix = ".hash"

// byOlder tells that a file is as an older engine wrote it.
func byOlder(path, there string) bool {
	if !strings.HasPrefix(there, "# Made by Escale, ") {
		return false
	}
	noted, err := readFile(path + olderSuffix)
	sum := sha256.Sum256([]byte(there))
	return err == nil && slices.Contains(strings.Fields(string(noted)), "sha256:"+hex.EncodeToString(sum[:]))
}

// Write writes a container's file, in place, for it may be mounted. One that
// somebody has changed since stays as it is; one that is empty was being written
// when the engine was killed.
func Write(path, text string) error {
	text = seal(text)
	there, err := readFile(path)
	switch {
	case errors.Is(err, errForeign):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case string(there) == text:
		return nil
	case len(there) > 0 && !untouched(string(there)):
		if !byOlder(path, string(there)) {
			return nil
		}
		defer os.Remove(path + olderSuffix)
	}
	if err = os.WriteFile(path, []byte(text), 0o644); err != nil {
		return errors.Join(err, os.Truncate(path, 0)) // half a file would be taken for somebody's
	}
	return nil
}
