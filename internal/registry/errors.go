package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// maxErrorBody bounds the bytes read of a refusal.
const maxErrorBody = 64 << 10

// Codes of refusals, from the specification.
const (
	codeDenied          = "DENIED"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameUnknown     = "NAME_UNKNOWN"
)

// Refusal is what a registry says instead of an answer.
type Refusal struct {
	Status  int    // of HTTP
	Code    string // "MANIFEST_UNKNOWN"; empty: the registry did not say
	Message string
}

func (r *Refusal) Error() string {
	if r.Code == "" {
		return fmt.Sprintf("received unexpected HTTP status: %d %s", r.Status, http.StatusText(r.Status))
	}
	words := strings.ToLower(strings.ReplaceAll(r.Code, "_", " "))
	if r.Message == "" {
		return words
	}
	return words + ": " + r.Message
}

// Unwrap gives the kind of the refusal.
func (r *Refusal) Unwrap() error {
	switch {
	case r.Status == http.StatusUnauthorized:
		return errdefs.ErrUnknown // as noLogin
	case r.Status == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case r.Status == http.StatusNotFound:
		return errdefs.ErrNotFound
	case r.Status == http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	case r.Status >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrUnknown
}

// refusal reads a refusal from an answer, and closes that.
func refusal(res *http.Response) *Refusal {
	defer res.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody)) // what came is enough
	return parseRefusal(res.StatusCode, data)
}

func parseRefusal(status int, data []byte) *Refusal {
	r := &Refusal{Status: status}
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(data, &doc) == nil && len(doc.Errors) > 0 {
		r.Code, r.Message = doc.Errors[0].Code, doc.Errors[0].Message
	}
	return r
}

// worded is an error in the words that clients know, of the kind of another.
type worded struct {
	text string
	err  error
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }

// explain words what went wrong with a pull as Docker does.
func explain(ref reference.Named, err error) error {
	var r *Refusal
	if !errors.As(err, &r) {
		return err
	}
	switch r.Code {
	case codeDenied:
		text := fmt.Sprintf("pull access denied for %s, repository does not exist or may require 'docker login': %s", reference.FamiliarName(ref), r)
		return &worded{text, errdefs.ErrNotFound}
	case codeManifestUnknown:
		return &worded{fmt.Sprintf("manifest for %s not found: %s", reference.FamiliarString(ref), r), errdefs.ErrNotFound}
	case codeNameUnknown:
		return &worded{fmt.Sprintf("repository %s not found: %s", reference.FamiliarName(ref), r), errdefs.ErrNotFound}
	}
	return err
}
