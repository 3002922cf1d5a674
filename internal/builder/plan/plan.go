// Package plan is what `escale build` asks of the program that does it: a build
// in the words of the command line, checked no further than that. It goes from
// one to the other as JSON. It links nothing, because escale links it.
package plan

import (
	"encoding/json"
	"fmt"
	"io"
)

// Word, as the one argument of escaled, makes it build a plan that it reads from
// the file descriptor FD.
const (
	Word = "build-client"
	FD   = 3
)

// Build is one build. Lists are options that can be said several times, each as
// it was said.
type Build struct {
	// Host is the engine, unix://PATH; Headers and UserAgent go with requests.
	Host, APIVersion, UserAgent string
	Headers                     map[string]string
	ConfigDir                   string // of Docker's config.json, for logins

	Context    string // directory, "-", or a URL
	Dockerfile string // path, or "-"; empty: Dockerfile in the context
	Contexts   []string
	Tags       []string
	Target     string
	Args       []string // NAME=VALUE
	Labels     []string // NAME=VALUE
	Platforms  []string
	Pull       bool
	NoCache    bool
	NoCacheFor []string // stages

	Outputs     []string
	Load, Push  bool
	Annotations []string
	Attests     []string
	CacheFrom   []string
	CacheTo     []string

	Secrets []string
	SSH     []string
	Network string
	Hosts   []string
	Allow   []string
	// Limits of steps, by the builder's names.
	Limits map[string]string

	Call         string // empty: build; else what of the frontend is to be called
	Progress     string
	Quiet        bool
	Debug        bool
	IDFile       string
	MetadataFile string
}

// Read reads a plan.
func Read(r io.Reader) (*Build, error) {
	var b Build
	if err := json.NewDecoder(r).Decode(&b); err != nil {
		return nil, fmt.Errorf("plan of a build: %w", err)
	}
	return &b, nil
}
