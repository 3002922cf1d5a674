package engine

import (
	"context"
	"errors"
	"net/http"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// statusOf maps an error to the status code Docker gives it.
func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, container.ErrNotModified), errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsAborted(err):
		return http.StatusConflict
	case errdefs.IsFailedPrecondition(err):
		return http.StatusPreconditionFailed
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err):
		return http.StatusServiceUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// writeMessage answers with Docker's error body.
func writeMessage(w *response, status int, msg string) {
	b := append(make([]byte, 0, len(msg)+16), `{"message":`...)
	b = appendString(b, msg)
	writeBytes(w, status, append(b, "}\n"...))
}
