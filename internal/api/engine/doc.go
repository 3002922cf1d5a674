// Package engine serves the Docker Engine HTTP API: a file a route group, each
// with its table of routes; the interfaces it needs from the engine; one
// mapping from error kinds to status codes.
package engine
