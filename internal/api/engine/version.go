package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// version is an API version. The minor number counts to 9999 at most, so that
// versions compare as numbers.
type version int

func v(minor int) version { return version(10000 + minor) }

// The versions this server speaks.
var (
	oldest = v(24)
	newest = v(56)
)

func (v version) String() string {
	return strconv.Itoa(int(v)/10000) + "." + strconv.Itoa(int(v)%10000)
}

// before reports whether v is older than 1.minor.
func (v version) before(minor int) bool { return v < version(10000+minor) }

// cutVersion splits "/v1.41/info" into "1.41" and "/info".
func cutVersion(path string) (word, rest string, ok bool) {
	if !strings.HasPrefix(path, "/v") {
		return "", "", false
	}
	for i := 2; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '/' && i > 2:
			return path[2:i], path[i:], true
		case c != '.' && (c < '0' || c > '9'):
			return "", "", false
		}
	}
	return "", "", false
}

// negotiate reads a version a client asks for. Components after the second do
// not count.
func negotiate(word string) (version, error) {
	asked := parseVersion(word)
	switch {
	case asked < oldest:
		return 0, invalidf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", word, oldest)
	case asked > newest:
		return 0, invalidf("client version %s is too new. Maximum supported API version is %s", word, newest)
	}
	return asked, nil
}

func parseVersion(word string) version {
	major, rest, _ := strings.Cut(word, ".")
	minor, _, _ := strings.Cut(rest, ".")
	return version(component(major)*10000 + component(minor))
}

// tooOld tells whether a client speaks a version from before 1.24, when errors
// were plain text.
func tooOld(word string) bool { return parseVersion(word) < oldest }

// component is one number of a version; what is no number counts as 0, what is
// too large as 9999.
func component(s string) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > 9999 {
		return 9999
	}
	return n
}

// kindError carries exact words together with an error kind whose own words are
// not shown.
type kindError struct {
	kind error
	msg  string
}

func (e *kindError) Error() string { return e.msg }
func (e *kindError) Unwrap() error { return e.kind }

// invalidf is an error of the client's request.
func invalidf(format string, args ...any) error {
	return &kindError{kind: errdefs.ErrInvalidArgument, msg: fmt.Sprintf(format, args...)}
}

func notFoundf(format string, args ...any) error {
	return &kindError{kind: errdefs.ErrNotFound, msg: fmt.Sprintf(format, args...)}
}

// MinVersion and MaxVersion are the oldest and the newest version that is
// spoken, as Docker writes them.
var (
	MinVersion = oldest.String()
	MaxVersion = newest.String()
)
